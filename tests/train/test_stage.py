"""Steps beside epochs: resumption inside an epoch, accumulation, reports, and interrupts that lose nothing."""

from __future__ import annotations

import dataclasses
import os
import signal
from dataclasses import dataclass

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from training import assert_same, digits, recipe, snapshot, states, task, train

from kdbench.methods.active import Active
from kdbench.methods.chain import Chain
from kdbench.methods.crd import CRD
from kdbench.methods.kd import KD
from kdbench.methods.mixup import Mixup
from kdbench.methods.none import NoTeacher
from kdbench.suite.fields import Recipe, RecipeOverride, patched
from kdbench.suite.job import shortened
from kdbench.train.engine import Engine
from kdbench.train.stage import length
from kdbench.train.state import Diverged


@pytest.fixture(scope="module")
def loaded():
    return digits()


def steps(count: int, **changes: object) -> Recipe:
    return recipe(epochs=None, steps=count, **changes)


class Plain(nn.Module):
    """No statistics of batches; dropout where asked for."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 10))
        self.kd_taps, self.kd_classifier = {}, "net.4"

    def forward(self, x):
        return self.net(x)


def with_student(work, student: nn.Module):
    return dataclasses.replace(work, models={**work.models, "student": student})


# length --------------------------------------------------------------------------------------------------------------
def test_a_length_counts_whole_batches_and_partial_epochs() -> None:
    whole = length(Recipe(epochs=3, batch_size=32), 0.5, 100)
    assert (whole.steps, whole.per_epoch, whole.epochs, whole.reports) == (6, 3, 2, 2)
    cut = length(Recipe(steps=10, batch_size=32, validate_every=4), 1.0, 100)
    assert (cut.steps, cut.epochs, cut.reports, cut.interval) == (10, 4, 3, 4)
    assert length(Recipe(epochs=1, batch_size=16, accumulate=2), 1.0, 100).per_epoch == 3
    few = length(Recipe(epochs=2, batch_size=64, accumulate=8), 1.0, 150)
    assert (few.batch, few.accumulate, few.per_epoch) == (64, 2, 1)


@pytest.mark.parametrize("method", [KD(), Chain()], ids=lambda m: type(m).__name__)
def test_as_many_steps_as_two_epochs_have_are_two_epochs(loaded, method) -> None:
    per_epoch = len(loaded.train.labels) // 32
    schedule = {"name": "cosine", "warmup_epochs": 1}
    one = train(method, loaded, recipe_=recipe(schedule=schedule))
    schedule = {"name": "cosine", "warmup_steps": per_epoch}
    other = train(method, loaded, recipe_=steps(2 * per_epoch, schedule=schedule))
    assert_same(states(one.answer), states(other.answer))
    assert one.curves == other.curves
    assert (one.images, one.epochs) == (other.images, other.epochs)


def test_reports_and_checkpoints_change_no_weight(loaded) -> None:
    made = [
        train(Mixup(KD()), loaded, recipe_=steps(13, **every))
        for every in ({}, {"validate_every": 5}, {"validate_every": 3, "checkpoint_every": 2})
    ]
    assert_same(states(made[0].answer), states(made[1].answer))
    assert_same(states(made[0].answer), states(made[2].answer))
    intervals = [len(loaded.train.labels) // 32, 5, 3]
    sums = []
    for one, interval in zip(made, intervals, strict=True):
        loss = one.curves["train/loss"]
        counts = [min(interval, 13 - begun) for begun in range(0, 13, interval)]
        assert len(loss) == len(one.curves["val/top1"]) == len(counts)
        assert None not in one.curves["val/top1"]
        sums.append(sum(value * count for value, count in zip(loss, counts, strict=True)))
    assert sums[1:] == pytest.approx(sums[:1] * 2, rel=1e-5)  # every step is in one mean, once


RESUMED = {"kd": KD(), "crd": CRD(negatives=64), "mixup": Mixup(), "active": Active(), "chain": Chain()}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("time", ["steps", "epochs"])
def test_resuming_inside_an_epoch_ends_with_the_same_bits(loaded, name: str, time: str) -> None:
    every = {"checkpoint_every": 3, "validate_every": 5 if time == "steps" else 1}
    made = steps(12, **every) if time == "steps" else recipe(**every)
    saved = []
    whole = Engine(task(RESUMED[name], loaded, recipe_=made), save=lambda state: saved.append(snapshot(state))).train()
    assert sum(state.step > 0 for state in saved) >= 2
    for state in saved[:-1]:
        again = Engine(task(RESUMED[name], loaded, recipe_=made), state=state).train()
        assert_same(states(again.answer), states(whole.answer))
        assert again.curves == whole.curves
        assert again.images == whole.images


def test_resuming_inside_an_epoch_repeats_the_masks_of_dropout(loaded) -> None:
    def made():
        return with_student(task(KD(), loaded, recipe_=recipe(checkpoint_every=2)), Plain(0.5))

    saved = []
    whole = Engine(made(), save=lambda state: saved.append(snapshot(state))).train()
    inside = [state for state in saved if state.step]
    assert inside
    for state in inside:
        torch.rand(17)  # whatever happened in between
        assert_same(states(Engine(made(), state=state).train().answer), states(whole.answer))


# accumulation --------------------------------------------------------------------------------------------------------
def test_accumulated_batches_are_one_larger_batch(loaded) -> None:
    def trained(size: int, accumulate: int):
        made = recipe(batch_size=size, accumulate=accumulate, clip_norm=1.0, schedule={"warmup_epochs": 1})
        return Engine(with_student(task(KD(), loaded, recipe_=made), Plain())).train()

    one, two, alone = trained(64, 1), trained(32, 2), trained(32, 1)
    assert (one.images, one.epochs) == (two.images, two.epochs)
    for name, value in states(one.answer).items():
        torch.testing.assert_close(states(two.answer)[name], value, rtol=1e-4, atol=1e-6)
        if name.endswith("weight"):
            assert not torch.allclose(states(alone.answer)[name], value, rtol=1e-4, atol=1e-6)
    for a, b in zip(one.curves["train/loss"], two.curves["train/loss"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)


# how far apart checkpoints are ---------------------------------------------------------------------------------------
def test_short_epochs_are_not_all_saved_but_the_ends_of_stages_are(loaded) -> None:
    saved = []
    work = task(Chain(), loaded, recipe_=recipe(epochs=4))
    Engine(work, save=lambda state: saved.append((state.stage, state.epoch)), spacing=3600).train()
    assert saved == [(0, 1), (0, 4), (1, 4)]  # the first one too: whoever is killed again and again gets on


def test_whoever_ends_a_training_between_two_checkpoints_loses_nothing(loaded) -> None:
    saved = []

    def watch(progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    work = task(KD(), loaded, recipe_=recipe(epochs=4))
    with pytest.raises(KeyboardInterrupt):
        Engine(work, save=lambda state: saved.append(snapshot(state)), watch=watch, spacing=3600).train()
    assert [state.epoch for state in saved] == [1, 3]
    again = Engine(task(KD(), loaded, recipe_=recipe(epochs=4)), state=saved[-1]).train()
    assert_same(states(again.answer), states(train(KD(), loaded, recipe_=recipe(epochs=4)).answer))


@dataclass(frozen=True)
class Stopped(KD):
    """Somebody presses Ctrl-C in the middle of a step; `times` of them."""

    times: int = 1

    def loss(self, learner, teachers, batch, heads):
        if batch.epoch == 1 and batch.index_B[0] == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return super().loss(learner, teachers, batch, heads)

    at: int = -1


@pytest.fixture
def third(loaded) -> int:
    """The first example of the third batch of the second epoch."""
    from kdbench.streams import order

    return int(order(0, 1, len(loaded.train.labels))[64])


def test_ctrl_c_is_heard_after_the_step_and_costs_nothing(loaded, third: int) -> None:
    saved, before = [], signal.getsignal(signal.SIGINT)
    work = task(Stopped(at=third), loaded)
    with pytest.raises(KeyboardInterrupt):
        Engine(work, save=lambda state: saved.append(snapshot(state)), spacing=3600).train()
    assert signal.getsignal(signal.SIGINT) is before
    assert (saved[-1].epoch, saved[-1].step) == (1, 3)
    again = Engine(task(KD(), loaded), state=saved[-1]).train()
    whole = train(KD(), loaded)
    assert_same(states(again.answer), states(whole.answer))
    assert again.curves == whole.curves


def test_a_second_ctrl_c_does_not_wait(loaded, third: int) -> None:
    saved = []
    with pytest.raises(KeyboardInterrupt):
        Engine(task(Stopped(at=third, times=2), loaded), save=lambda s: saved.append((s.epoch, s.step))).train()
    assert saved == [(1, 0)]


# words ---------------------------------------------------------------------------------------------------------------
def test_progress_counts_steps_where_the_recipe_does(loaded) -> None:
    heard = []
    Engine(task(KD(), loaded, recipe_=steps(7, validate_every=3)), watch=heard.append).train()
    assert [(p.clock, p.epoch + 1, p.epochs) for p in heard] == [("step", 3, 7), ("step", 6, 7), ("step", 7, 7)]


def test_a_divergence_says_in_which_steps(loaded) -> None:
    @dataclass(frozen=True)
    class Explodes(NoTeacher):
        def loss(self, learner, teachers, batch, heads):
            return {"ce": learner.rows.sum() * float("inf")}

    with pytest.raises(Diverged, match="not finite in the steps up to 3 of 7"):
        train(Explodes(), loaded, recipe_=steps(7, validate_every=3))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "needs `epochs`, or `steps`"),
        ({"epochs": 2, "steps": 3}, "choose one of `epochs` and `steps`"),
        ({"steps": 9, "schedule": {"warmup_epochs": 1}}, "give schedule.warmup_steps"),
        ({"epochs": 9, "schedule": {"warmup_steps": 1}}, "give schedule.warmup_epochs"),
        ({"steps": 9, "schedule": {"warmup_steps": 9}}, "warm-up of 9 steps leaves none of 9"),
        ({"steps": 9, "schedule": {"name": "multistep", "milestones": [9]}}, "not before the last step"),
    ],
)
def test_time_is_counted_in_one_unit(given: dict, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Recipe.model_validate(given)


def test_an_override_in_the_other_unit_takes_the_place_of_the_first() -> None:
    made = patched(Recipe(epochs=5), RecipeOverride.model_validate({"steps": 100}))
    assert (made.epochs, made.steps) == (None, 100)
    assert patched(made, RecipeOverride.model_validate({"epochs": 2})) == Recipe(epochs=2)


def test_steps_are_shortened_to_epochs() -> None:
    schedule = {"name": "multistep", "warmup_steps": 100, "milestones": [500]}
    short = shortened(Recipe.model_validate({"steps": 1000, "schedule": schedule}), 10)
    assert (short.epochs, short.steps) == (10, None)
    assert (short.schedule.warmup_epochs, short.schedule.warmup_steps, short.schedule.milestones) == (1.0, 0, (5,))

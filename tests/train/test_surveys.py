"""Draws and surveys: what a frozen role says beside its answer, aligned with the batch, and the same after a resume."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import assert_same, digits, recipe, snapshot, states, task

from kdbench.method import Needs, Refusal, Survey
from kdbench.methods.kd import KD
from kdbench.methods.mutual import Mutual
from kdbench.streams import seeded
from kdbench.suite.fields import Augment
from kdbench.train.engine import Engine
from kdbench.train.frozen import exact
from kdbench.train.surveys import survey


@pytest.fixture(scope="module")
def loaded():
    return digits()


def mean_of_pixels(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.mean((1, 2, 3))


def answers(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def image(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x * 0.3765 + 0.3064  # digits, as they were before they were normalised: black is 0


def saliency(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(x).amax(1).sum(), x)[0]


@dataclass(frozen=True, eq=False)
class Surveying(KD):
    """KD that notes what its batches hold, and learns from it."""

    asked: tuple[Survey, ...] = ()
    seen: list = field(default_factory=list)

    def needs(self) -> Needs:
        return dataclasses.replace(super().needs(), survey=self.asked)

    def loss(self, learner, teachers, batch, heads):
        self.seen.append(batch)
        terms = super().loss(learner, teachers, batch, heads)
        return terms | {
            "survey": 0.1 * (learner.rows.mean(1) * batch.surveys[self.asked[0].name].flatten(1).sum(1)).mean()
        }


# surveys -------------------------------------------------------------------------------------------------------------
def test_every_example_meets_its_own_value_in_every_epoch(loaded) -> None:
    method = Surveying(asked=(Survey("mean", "teacher", lambda model, x: mean_of_pixels(model, x)[:, None]),))
    Engine(task(method, loaded)).train()
    raw = loaded.train.images.double().numpy() / 255
    expected = (raw.mean((1, 2, 3)) - 0.3064) / 0.3765
    assert len({tuple(batch.index_B.tolist()) for batch in method.seen}) == len(method.seen) > 4
    for batch in method.seen:
        np.testing.assert_allclose(batch.surveys["mean"][:, 0], expected[batch.index_B], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("augment", [{"crop": 2, "flip": True}, {"flip": True}, {}], ids=str)
def test_an_image_takes_the_crop_and_flip_of_its_pixels(loaded, augment: dict) -> None:
    method = Surveying(asked=(Survey("image", "teacher", image, image=True),))
    Engine(task(method, loaded, recipe_=recipe(augment=augment))).train()
    for batch in method.seen:
        torch.testing.assert_close(batch.surveys["image"], image(nn.Identity(), batch.x), rtol=1e-4, atol=1e-4)
    moved = torch.cat([b.surveys["image"] for b in method.seen])
    still = torch.cat([loaded.train.images[b.index_B] / 255 for b in method.seen])
    assert torch.allclose(moved, still, atol=1e-4) == (augment == {})


def test_an_image_takes_the_resized_crop_of_its_pixels(loaded) -> None:
    method = Surveying(asked=(Survey("image", "teacher", image, image=True),))
    made = Augment.model_validate({"random_resized_crop": {"scale": [0.3, 1.0]}, "flip": True})
    Engine(task(method, loaded, recipe_=recipe(augment=made.model_dump(exclude_unset=True)))).train()
    for batch in method.seen:
        off = (batch.surveys["image"] - image(nn.Identity(), batch.x)).abs()
        assert off.max() <= 0.51 / 255  # pixels are rounded to whole levels


def test_resuming_with_surveys_ends_with_the_same_bits(loaded) -> None:
    def made():
        asked = (Survey("saliency", "teacher", saliency, image=True),)
        return task(Surveying(asked=asked), loaded, recipe_=recipe(checkpoint_every=4))

    saved = []
    whole = Engine(made(), save=lambda state: saved.append(snapshot(state))).train()
    assert any(state.step for state in saved)
    for state in saved[:-1]:
        assert_same(states(Engine(made(), state=state).train().answer), states(whole.answer))


def test_a_survey_is_kept_beside_its_role_and_made_once(loaded, tmp_path) -> None:
    calls = []

    def counted(model, x):
        calls.append(len(x))
        return answers(model, x)

    teacher = task(KD(), loaded).models["teacher"]
    asked = Survey("answers", "teacher", counted)
    first = survey(asked, teacher, loaded, Augment(), tmp_path)
    assert sum(calls) == len(loaded.train.labels)
    again = survey(asked, teacher, loaded, Augment(), tmp_path)
    assert sum(calls) == len(loaded.train.labels)
    assert torch.equal(first.values_N, again.values_N)
    (path,) = (tmp_path / "surveys").iterdir()
    path.write_bytes(path.read_bytes()[:100])  # damaged: made again
    assert torch.equal(survey(asked, teacher, loaded, Augment(), tmp_path).values_N, first.values_N)
    survey(dataclasses.replace(asked, revision=2), teacher, loaded, Augment(), tmp_path)
    survey(Survey("answers", "teacher", answers), teacher, loaded, Augment(), tmp_path)
    assert sum(calls) == 3 * len(loaded.train.labels)
    assert len([p for p in (tmp_path / "surveys").iterdir() if p.suffix == ".safetensors"]) == 3


def test_a_survey_counts_as_training_whoever_made_it(loaded, tmp_path) -> None:
    """The second training finds it made, and is no cheaper for that; a resumed one does not pay again."""

    def slow(model, x):
        time.sleep(0.3)
        return answers(model, x)

    def made():
        work = task(Surveying(asked=(Survey("slow", "teacher", slow),)), loaded)
        return dataclasses.replace(work, folders={"teacher": tmp_path})

    saved = []
    first = Engine(made(), save=lambda state: saved.append(snapshot(state))).train()
    second = Engine(made()).train()
    assert min(first.seconds, second.seconds) > 0.3
    again = Engine(made(), state=saved[-1])
    before = again.state.seconds
    again._survey()
    assert again.state.seconds == before


def test_all_values_can_be_finished_together(loaded) -> None:
    teacher = task(KD(), loaded).models["teacher"]
    asked = Survey("rank", "teacher", mean_of_pixels, finish=lambda values_N: values_N.argsort().argsort())
    found = survey(asked, teacher, loaded, Augment()).values_N
    assert sorted(found.tolist()) == list(range(len(loaded.train.labels)))


def test_surveys_that_cannot_be_are_refused(loaded) -> None:
    teacher = task(KD(), loaded).models["teacher"]
    with pytest.raises(Refusal, match=r"must be \(B, D, 8, 8\)"):
        survey(Survey("s", "teacher", lambda m, x: x[..., :4, :4], image=True), teacher, loaded, Augment())
    with pytest.raises(Refusal, match=r"answers \(3, 1, 8, 8\) for"):
        survey(Survey("s", "teacher", lambda m, x: x[:3]), teacher, loaded, Augment())
    mixing = Augment.model_validate({"cutmix": {}})
    with pytest.raises(Refusal, match="cannot follow cutmix"):
        survey(Survey("s", "teacher", image, image=True), teacher, loaded, mixing)
    method = Surveying(asked=(Survey("s", "student", answers),))
    with pytest.raises(Refusal, match="no frozen teacher"):
        Engine(task(method, loaded)).train()


# draws ---------------------------------------------------------------------------------------------------------------
class Dropping(nn.Module):
    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(rate), nn.Linear(16, 10)
        )
        self.kd_taps, self.kd_classifier = {}, "net.4"

    def forward(self, x):
        return self.net(x)


@dataclass(frozen=True, eq=False)
class Drawing(KD):
    """Learns from the mean of three draws; notes them."""

    seen: list = field(default_factory=list)

    def needs(self) -> Needs:
        return dataclasses.replace(super().needs(), draws=3)

    def loss(self, learner, teachers, batch, heads):
        drawn = teachers["teacher"].draws
        self.seen.append((batch, drawn, teachers["teacher"].rows))
        mean = {"teacher": dataclasses.replace(teachers["teacher"], rows=drawn.mean(0))}
        return super().loss(learner, mean, batch, heads)


def drawing(loaded, **changes):
    method = Drawing()
    work = task(method, loaded, recipe_=recipe(**changes))
    teacher = Dropping().eval().requires_grad_(False)
    return method, dataclasses.replace(work, models={**work.models, "teacher": teacher})


def test_draws_differ_and_are_a_function_of_seed_epoch_and_step(loaded) -> None:
    method, work = drawing(loaded)
    Engine(work).train()
    teacher = work.models["teacher"]
    assert not any(module.training for module in teacher.modules())
    for batch, drawn, rows in method.seen:
        assert drawn.shape == (3, *rows.shape)
        assert not drawn.requires_grad
        assert not torch.equal(drawn[0], drawn[1])
        with torch.no_grad():
            torch.testing.assert_close(rows, teacher(batch.x))
    again, other = drawing(loaded, optimizer={"lr": 0.5})  # another learner, the same draws
    torch.rand(11)
    Engine(other).train()
    for (_, one, _), (_, two, _) in zip(method.seen, again.seen, strict=True):
        assert torch.equal(one, two)
    firsts = [drawn[0, 0] for _, drawn, _ in method.seen]
    assert len({tuple(first.tolist()) for first in firsts}) == len(firsts)


def test_a_draw_drops_and_changes_nothing_else(loaded) -> None:
    """Again by hand: masks from the stream of this batch; the statistics of BatchNorm stay those that were learned."""
    method, work = drawing(loaded, epochs=1)
    before = states(work.models["teacher"])
    Engine(work).train()
    assert_same(states(work.models["teacher"]), before)
    net = work.models["teacher"].net
    for batch, drawn, _ in method.seen:
        with torch.no_grad(), seeded(0, "draws", "teacher", 0, 0, batch.number):
            hidden = net[:3](batch.x)
            by_hand = torch.stack([net[4](F.dropout(hidden, 0.5, training=True)) for _ in range(3)])
        torch.testing.assert_close(drawn, by_hand)
    assert [batch.number for batch, *_ in method.seen] == list(range(len(method.seen)))


def test_resuming_inside_an_epoch_repeats_the_draws(loaded) -> None:
    saved = []
    whole = Engine(drawing(loaded, checkpoint_every=4)[1], save=lambda s: saved.append(snapshot(s))).train()
    for state in saved[:-1]:
        again = Engine(drawing(loaded, checkpoint_every=4)[1], state=state).train()
        assert_same(states(again.answer), states(whole.answer))


def test_a_teacher_without_dropout_is_refused(loaded) -> None:
    with pytest.raises(Refusal, match="the teacher has no dropout"):
        Engine(task(Drawing(), loaded)).train()


def test_draws_are_never_stored(loaded) -> None:
    assert not exact(Drawing(), recipe(teacher_logits="stored", augment={}))
    assert exact(KD(), recipe(teacher_logits="stored", augment={}))


def test_who_learns_while_it_teaches_has_no_draws(loaded) -> None:
    found = []

    @dataclass(frozen=True)
    class Peers(Mutual):
        def needs(self) -> Needs:
            return dataclasses.replace(Mutual.needs(self), draws=2)

        def loss(self, learner, teachers, batch, heads):
            found.extend(out.draws for out in teachers.values())
            return Mutual.loss(self, learner, teachers, batch, heads)

    Engine(task(Peers(), loaded, recipe_=recipe(epochs=1))).train()
    assert found
    assert set(found) == {None}

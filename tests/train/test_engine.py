"""The loop against hand-written loops, bit for bit; resumption; what each role may and may not do."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import assert_same, digits, network, recipe, snapshot, states, task, train

from kdbench.batch import Batch, Probe, Review
from kdbench.data.augment import pixels
from kdbench.losses import cross_entropy
from kdbench.method import Method, Needs, Plan, Prepared, Rates, Refusal, Stage, Wrapper
from kdbench.methods.active import Active
from kdbench.methods.chain import Chain
from kdbench.methods.crd import CRD
from kdbench.methods.dkd import DKD
from kdbench.methods.fitnet import FitNet
from kdbench.methods.kd import KD
from kdbench.methods.mixup import Mixup
from kdbench.methods.mutual import Mutual
from kdbench.methods.none import NoTeacher
from kdbench.methods.simkd import SimKD
from kdbench.streams import derive, order
from kdbench.suite.fields import Recipe
from kdbench.train import evaluate
from kdbench.train.engine import Engine
from kdbench.train.frozen import exact
from kdbench.train.state import Diverged, Sum


@pytest.fixture(scope="module")
def loaded():
    return digits()


def bare_loop(loaded, *, epochs: int, teacher: nn.Module | None) -> dict[str, torch.Tensor]:
    """What one would write by hand: SGD, cosine by step, crop and flip, optionally KD with T=4, 0.1 / 0.9."""
    student = network(loaded, "student").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    n, size = len(loaded.train.labels), 32
    steps = n // size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        student.train()
        indices = order(0, epoch, n)
        for step in range(steps):
            index = indices[step * size : (step + 1) * size]
            x = pixels(
                loaded.train.images,
                index,
                augment=recipe().augment,
                seed=0,
                epoch=epoch,
                mean=loaded.mean,
                std=loaded.std,
            ).contiguous(memory_format=torch.channels_last)
            z, y = student(x), loaded.train.labels[index]
            loss = F.cross_entropy(z, y)
            if teacher is not None:
                with torch.no_grad():
                    p = F.softmax(teacher(x) / 4, dim=1)
                soft = F.kl_div(F.log_softmax(z / 4, dim=1), p, reduction="batchmean")
                loss = 0.1 * loss + 0.9 * 16 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return states(student)


def test_no_teacher_equals_a_loop_written_by_hand(loaded) -> None:
    found = states(train(NoTeacher(), loaded).answer)
    expected = bare_loop(loaded, epochs=2, teacher=None)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_kd_equals_a_loop_written_by_hand(loaded) -> None:
    found = states(train(KD(), loaded).answer)
    expected = bare_loop(loaded, epochs=2, teacher=network(loaded, "teacher").eval())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


RESUMED = {
    "kd": KD(),
    "crd": CRD(negatives=64),
    "chain": Chain(),
    "mutual": Mutual(),
    "fitnet": FitNet(),
    "simkd": SimKD(),
    "mixup": Mixup(),
}


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_after_any_epoch_ends_with_the_same_bits(loaded, name: str) -> None:
    saved = []
    whole = Engine(task(RESUMED[name], loaded), save=lambda state: saved.append(snapshot(state))).train()
    assert len(saved) == whole.epochs
    for state in saved[:-1]:
        again = Engine(task(RESUMED[name], loaded), state=state).train()
        assert_same(states(again.answer), states(whole.answer))
        assert again.curves == whole.curves
        assert again.images == whole.images


def test_resuming_with_dropout_repeats_the_masks(loaded) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))
            self.kd_taps, self.kd_classifier = {}, "net.3"

        def forward(self, x):
            return self.net(x)

    def made():
        torch.manual_seed(5)
        return dataclasses.replace(task(NoTeacher(), loaded), models={"student": Dropping()})

    saved = []
    whole = Engine(made(), save=lambda state: saved.append(snapshot(state))).train()
    torch.rand(17)  # whatever happened in between
    assert_same(states(Engine(made(), state=saved[0]).train().answer), states(whole.answer))


@pytest.mark.parametrize("method", [KD(), FitNet(), SimKD(), CRD(negatives=32)], ids=lambda m: type(m).__name__)
def test_a_frozen_teacher_is_bit_identical_afterwards(loaded, method) -> None:
    made = task(method, loaded)
    teacher = made.models["teacher"]
    before = states(teacher)
    Engine(made).train()
    assert any("running_mean" in name for name in before)
    assert_same(states(teacher), before)
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())


@dataclass(frozen=True)
class Spy(Wrapper):
    """Notes what every batch held, after the wrapped method changed nothing."""

    over: Method = NoTeacher()
    seen: tuple[list, ...] = ([],)

    def __hash__(self) -> int:
        return id(self)

    def batch(self, batch: Batch) -> Batch:
        digest = hashlib.sha256(batch.x.contiguous().numpy().tobytes()).hexdigest()
        self.seen[0].append((batch.stage, batch.epoch, batch.index_B.tolist(), digest))
        return self.over.batch(batch)


@pytest.mark.parametrize("method", [KD(), CRD(negatives=32), FitNet(), Mutual()], ids=lambda m: type(m).__name__)
def test_every_method_sees_the_same_pixels_in_the_same_order(loaded, method) -> None:
    floor, other = Spy(NoTeacher(), ([],)), Spy(method, ([],))
    train(floor, loaded)
    train(other, loaded)
    assert floor.seen == other.seen
    assert len(floor.seen[0]) == 2 * (len(loaded.train.labels) // 32)
    assert len({digest for *_, digest in floor.seen[0]}) == len(floor.seen[0])


def test_every_method_starts_from_the_same_student(loaded) -> None:
    starts = [states(task(method, loaded).models["student"]) for method in (NoTeacher(), KD(), Mutual(), Chain())]
    for other in starts[1:]:
        assert_same(starts[0], other)
    different = states(task(NoTeacher(), loaded, seed=1).models["student"])
    assert any(not torch.equal(starts[0][name], different[name]) for name in different)


def test_an_epoch_sees_every_example_at_most_once(loaded) -> None:
    spy = Spy(NoTeacher(), ([],))
    train(spy, loaded)
    for epoch in (0, 1):
        seen = [i for _, e, index, _ in spy.seen[0] if e == epoch for i in index]
        assert len(seen) == len(set(seen)) == len(loaded.train.labels) // 32 * 32


def test_peers_learn_from_each_other_and_differ(loaded) -> None:
    made = task(Mutual(), loaded)
    before = {role: states(model) for role, model in made.models.items()}
    Engine(made).train()
    for role in ("student", "peer"):
        assert any(not torch.equal(before[role][k], v) for k, v in made.models[role].state_dict().items())
    assert "teacher" not in made.models
    ends = [states(made.models[role]) for role in ("student", "peer")]
    assert any(not torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_heads_are_trained_and_kept_out_of_the_deployed_student(loaded) -> None:
    made = task(FitNet(), loaded)
    engine = Engine(made)
    trained = engine.train()
    plain = sum(p.numel() for p in network(loaded, "student").parameters())
    assert sum(p.numel() for p in trained.answer.parameters()) == plain == trained.learner_parameters
    heads = engine.heads["student"]
    assert trained.head_parameters == sum(p.numel() for p in heads.parameters()) > 0
    fresh = Engine(dataclasses.replace(made, recipe=recipe(epochs=1, optimizer={"lr": 1e-12}))).heads
    assert fresh == {}
    assert all(not p.requires_grad for p in heads.parameters())  # frozen once the stage is over


def test_simkd_deploys_another_graph_and_counts_it(loaded) -> None:
    trained = train(SimKD(), loaded)
    plain = sum(p.numel() for p in network(loaded, "student").parameters())
    assert sum(p.numel() for p in trained.answer.parameters()) > plain
    assert trained.answer(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_answer_can_be_a_sum_of_models(loaded) -> None:
    @dataclass(frozen=True)
    class Both(Mutual):
        def plan(self, roles):
            return dataclasses.replace(Mutual.plan(self, roles), answer=("student", "peer"))

    trained = train(Both(), loaded)
    assert isinstance(trained.answer, Sum)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(trained.answer(x), trained.parts[0](x) + trained.parts[1](x))


@dataclass(frozen=True)
class Explodes(NoTeacher):
    def loss(self, learner, teachers, batch, heads):
        return {"ce": learner.rows.sum() * (float("inf") if batch.epoch else 1.0)}


def test_a_non_finite_loss_is_found_at_the_end_of_its_epoch(loaded) -> None:
    with pytest.raises(Diverged, match="not finite in epoch 2 of 2"):
        train(Explodes(), loaded)


def test_mixed_labels_are_refused_by_methods_that_need_hard_ones(loaded) -> None:
    with pytest.raises(Refusal, match="hard labels"):
        train(Mixup(over=DKD()), loaded)


@dataclass(frozen=True)
class Half(Wrapper):
    """Samples the first half of the training set only."""

    over: Method = NoTeacher()

    def needs(self) -> Needs:
        return dataclasses.replace(self.over.needs(), probe=True)

    def sample(self, probe: Probe):
        assert probe.rows_NC.shape == (len(probe.labels_N), 10)
        return (torch.arange(len(probe.labels_N)) < len(probe.labels_N) // 2).float()


def test_sampling_weights_decide_which_examples_are_seen(loaded) -> None:
    spy = Spy(Half(), ([],))
    train(spy, loaded)
    assert max(i for *_, index, _ in spy.seen[0] for i in index) < len(loaded.train.labels) // 2


def test_curves_have_a_value_for_every_epoch_of_every_stage(loaded) -> None:
    trained = train(Chain(), loaded, recipe_=recipe(epochs=3, validate_every=2))
    assert len(trained.curves["train/ta/loss"]) == 3
    assert trained.curves["train/loss"][:3] == [None] * 3
    assert len(trained.curves["train/loss"]) == 6
    assert trained.curves["val/top1"][:4] == [None] * 4
    assert trained.curves["val/top1"][4] is not None
    assert trained.curves["val/top1"][5] is not None
    assert trained.epochs == 6


def test_terms_are_summed_into_the_loss(loaded) -> None:
    curves = train(KD(), loaded).curves
    for loss, ce, kd in zip(curves["train/loss"], curves["train/ce"], curves["train/kd"], strict=True):
        assert loss == pytest.approx(ce + kd, rel=1e-5)


def test_a_stage_takes_its_share_of_the_epochs(loaded) -> None:
    @dataclass(frozen=True)
    class Halves(NoTeacher):
        def plan(self, roles):
            return Plan((Stage({"student": ()}, 0.5), Stage({"student": ()}, 0.5)))

    trained = train(Halves(), loaded, recipe_=recipe(epochs=4))
    assert trained.epochs == 4
    assert len(trained.curves["train/loss"]) == 4


def test_clipping_bounds_the_step(loaded) -> None:
    tight = train(NoTeacher(), loaded, recipe_=recipe(clip_norm=1e-6, optimizer={"lr": 0.1, "weight_decay": 0.0}))
    start = network(loaded, "student")
    moved = sum((a - b).norm().item() for a, b in zip(tight.answer.parameters(), start.parameters(), strict=True))
    assert 0 < moved < 1e-3


HOST_READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
SILENT = [KD(), DKD(), FitNet(), CRD(negatives=32), SimKD(), Mutual(), Mixup(), NoTeacher()]


@pytest.mark.parametrize("method", SILENT, ids=lambda m: type(m).__name__)
def test_a_step_never_reads_from_the_device(loaded, method, monkeypatch) -> None:
    inside = [False]
    for name in HOST_READS:
        original = getattr(torch.Tensor, name)

        def guard(self, *args, _original=original, _name=name, **kwargs):
            assert not inside[0], f"Tensor.{_name} inside a training step waits for the device"
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, guard)
    engine = Engine(task(method, loaded, recipe_=recipe(epochs=1)))
    step = engine.stepper._step

    def watched(*args):
        inside[0] = True
        try:
            return step(*args)
        finally:
            inside[0] = False

    monkeypatch.setattr(engine.stepper, "_step", watched)
    assert engine.train().images > 0


def test_the_seed_alone_decides(loaded) -> None:
    one, two = (states(train(KD(), loaded, seed=3).answer) for _ in range(2))
    assert_same(one, two)
    other = states(train(KD(), loaded, seed=4).answer)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_streams_of_one_seed_are_distinct() -> None:
    names = [("init", "student"), ("init", "peer"), ("heads", "student"), ("dropout", 0, 1), ("dropout", 1, 0)]
    assert len({derive(0, *name) for name in names}) == len(names)


@dataclass(frozen=True)
class Twice(NoTeacher):
    """Two stages of one learner, whose head has a frozen half."""

    def plan(self, roles):
        return Plan((Stage({"student": ()}, 0.5), Stage({"student": ()}, 0.5)))

    def heads(self, learner, teachers):
        return nn.ModuleDict({"kept": nn.Linear(10, 10).requires_grad_(False), "trained": nn.Linear(10, 10)})

    def loss(self, learner, teachers, batch, heads):
        z = heads["trained"](heads["kept"](learner.rows))
        return {"ce": cross_entropy(z, batch.targets)}


def test_what_a_method_froze_stays_frozen_in_a_later_stage(loaded) -> None:
    engine = Engine(task(Twice(), loaded))
    trained = engine.train()
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "heads", "student"))
        fresh = Twice().heads(None, {})
    kept = engine.heads["student"]
    assert_same(states(kept["kept"]), states(fresh["kept"]))
    assert not torch.equal(kept["trained"].weight, fresh["trained"].weight)
    assert trained.head_parameters == 110


@dataclass(frozen=True)
class Slow(NoTeacher):
    """The student's first layers and one half of the head hardly learn: groups of `prepare` and of `heads`."""

    def prepare(self, model, role, teachers):
        return Prepared(model, {next(iter(dict(model.named_parameters()))): Rates(lr=0.0, decay=0.0)})

    def heads(self, learner, teachers):
        heads = nn.ModuleDict({"kept": nn.Linear(10, 10), "trained": nn.Linear(10, 10)})
        return Prepared(heads, {"kept.*": Rates(lr=0.0)})

    def loss(self, learner, teachers, batch, heads):
        z = heads["trained"](heads["kept"](learner.rows))
        return {"ce": cross_entropy(z, batch.targets)}


def test_groups_of_prepare_and_heads_set_rates(loaded) -> None:
    made = task(Slow(), loaded)
    before, engine = states(made.models["student"]), Engine(made)
    engine.train()
    first = next(iter(dict(made.models["student"].named_parameters())))
    for name, parameter in made.models["student"].named_parameters():
        assert torch.equal(before[name], parameter) == (name == first)
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "heads", "student"))
        fresh = Slow().heads(None, {}).model
    kept = engine.heads["student"]
    assert_same(states(kept["kept"]), states(fresh["kept"]))
    assert not torch.equal(kept["trained"].weight, fresh["trained"].weight)


# stored logits -------------------------------------------------------------------------------------------------------
def calm(logits: str) -> Recipe:
    return recipe(teacher_logits=logits, augment={"crop": 0, "flip": False})


@pytest.mark.parametrize("method", [KD(), DKD(), Chain()], ids=lambda m: type(m).__name__)
def test_stored_logits_train_as_live_ones_do(loaded, method, monkeypatch) -> None:
    live = train(method, loaded, recipe_=calm("live"))
    from kdbench.train import frozen

    def never(self, batch):
        raise AssertionError("a frozen role ran on a training batch")

    monkeypatch.setattr(frozen.Live, "__call__", never)
    found = train(method, loaded, recipe_=calm("stored"))
    for name, value in states(found.answer).items():
        torch.testing.assert_close(value, states(live.answer)[name], atol=1e-5, rtol=1e-5)
    for name, curve in live.curves.items():
        kept = [(a, b) for a, b in zip(found.curves[name], curve, strict=True) if b is not None]
        assert all(a == pytest.approx(b, rel=1e-4, abs=1e-5) for a, b in kept)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (KD(), True),
        (Active(), True),
        (Chain(DKD()), True),
        (NoTeacher(), True),
        (Mixup(KD()), False),  # other pixels than those stored
        (Chain(Mixup(KD())), False),
        (FitNet(), False),  # the teacher's features
        (SimKD(), False),
        (CRD(negatives=8), False),
        (Spy(KD()), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_logits_are_stored_only_where_that_is_exact(method: Method, expected: bool) -> None:
    assert exact(method, calm("stored")) == expected
    assert not exact(method, calm("live"))
    assert not exact(method, recipe(teacher_logits="stored"))  # augmented

    @dataclass(frozen=True)
    class TwoViews(Wrapper):
        def needs(self) -> Needs:
            return dataclasses.replace(self.over.needs(), views=2)

    assert not exact(TwoViews(method), calm("stored"))


def test_a_role_that_learns_again_is_asked_again(loaded) -> None:
    """student and peer in turn teach each other: what each says is stored anew once it has learned."""

    @dataclass(frozen=True)
    class Turns(Wrapper):
        over: Method = KD()

        def plan(self, roles):
            both = Stage({"student": ("peer",), "peer": ("student",)}, 0.5)
            one, other = Stage({"student": ("peer",)}, 0.5), Stage({"peer": ("student",)}, 0.5)
            return Plan((both, one, other, one), copies={"peer": "student"})

    live, frozen = (train(Turns(), loaded, recipe_=calm(logits)) for logits in ("live", "stored"))
    for name, value in states(frozen.answer).items():
        torch.testing.assert_close(value, states(live.answer)[name], atol=1e-5, rtol=1e-5)


def test_resuming_with_stored_logits_ends_with_the_same_bits(loaded) -> None:
    saved = []
    whole = Engine(task(Chain(), loaded, recipe_=calm("stored")), save=lambda s: saved.append(snapshot(s))).train()
    for state in saved[:-1]:
        again = Engine(task(Chain(), loaded, recipe_=calm("stored")), state=state).train()
        assert_same(states(again.answer), states(whole.answer))


# reviews -------------------------------------------------------------------------------------------------------------
def test_a_method_reviews_each_learner_once_when_its_stage_is_over(loaded) -> None:
    seen = []

    @dataclass(frozen=True)
    class Reviewed(Chain):
        def needs(self) -> Needs:
            return Needs(probe=True)

        def review(self, probe: Probe) -> Review:
            seen.append((probe.role, probe.epoch, isinstance(probe.heads, nn.Module)))
            return Review({"mean": probe.rows_NC.mean().item()}, (f"{probe.role} is done",))

    saved = []
    trained = Engine(task(Reviewed(), loaded), save=lambda state: saved.append(snapshot(state))).train()
    assert seen == [("ta", 1, True), ("student", 1, True)]
    assert trained.notes == ("ta is done", "student is done")
    assert trained.curves["train/ta/mean"][0] is None
    expected = evaluate.split_answers(trained.answer, loaded.train).mean().item()
    assert trained.curves["train/student/mean"][-1] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    again = Engine(task(Reviewed(), loaded), state=saved[1]).train()  # the first stage is not reviewed again
    assert again.notes == trained.notes


# what the author of a model froze -------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [NoTeacher(), KD(), SimKD(), Mutual()])
def test_what_the_author_of_a_model_froze_stays_as_it_was(loaded, method) -> None:
    asked = task(method, loaded)
    for role in asked.plan.learners:
        asked.models[role].stages[0].requires_grad_(False)
    before = {role: states(asked.models[role]) for role in asked.plan.learners}
    trained = Engine(asked).train()
    for role, part in zip(asked.plan.answer, trained.parts, strict=True):
        after = states(part)
        parameters = {name for name, _ in asked.models[role].stages[0].named_parameters(prefix="stages.0")}
        kept = {name for name in after if name in before[role] and torch.equal(after[name], before[role][name])}
        assert parameters
        assert parameters <= kept
        assert "stages.1.0.weight" not in kept


def test_a_learner_that_is_frozen_as_a_whole_is_refused(loaded) -> None:
    asked = task(KD(), loaded)
    asked.models["student"].requires_grad_(False)
    with pytest.raises(Refusal, match=r"the student has nothing to learn: all parameters of its .* are frozen"):
        Engine(asked).train()

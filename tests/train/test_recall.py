"""Trainings with stored answers end with the bits of those without, whoever stored them and whatever came between."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import assert_same, digits, recipe, snapshot, states, task

from kdbench.batch import Batch
from kdbench.data import DataSet
from kdbench.data.augment import choices, drawn, pixels
from kdbench.method import Method, Needs, Wrapper
from kdbench.methods.active import Active
from kdbench.methods.chain import Chain
from kdbench.methods.fitnet import FitNet
from kdbench.methods.kd import KD
from kdbench.methods.mixup import Mixup
from kdbench.methods.mlkd import MLKD
from kdbench.methods.mutual import Mutual
from kdbench.suite.fields import Augment
from kdbench.train import recall
from kdbench.train.clock import Seconds
from kdbench.train.engine import Engine
from kdbench.train.recall import Recalled
from kdbench.train.state import State, Trained, Training
from kdbench.train.table import Shelf, tables


@pytest.fixture(scope="module")
def loaded() -> DataSet:
    return digits()


@dataclass
class Desk:
    """Trainings whose teacher keeps its answers in one folder."""

    folder: Path
    loaded: DataSet
    room: int = 10**9

    def __post_init__(self) -> None:
        self.own = self.folder / "teachers" / "t"
        self.own.mkdir(parents=True)
        self.told: list[str] = []

    def work(self, method: Method, stored: bool = True, **options) -> Training:
        made = task(method, self.loaded, **options)
        return dataclasses.replace(made, shelves=self.shelves(made) if stored else {})

    def shelves(self, made: Training) -> dict[str, Shelf]:
        return {role: Shelf(self.own, {"of": role}, self.room, self.told.append) for role in made.plan.frozen}

    def train(self, method: Method, stored: bool = True, state: State | None = None, **options) -> Trained:
        return Engine(self.work(method, stored, **options), state=state).train()


@pytest.fixture
def desk(tmp_path: Path, loaded: DataSet) -> Desk:
    return Desk(tmp_path, loaded)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that tables have asked a teacher about, to be kept or to be timed."""
    sizes: list[int] = []
    real = Recalled._asked

    def counted(self: Recalled, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return real(self, x)

    monkeypatch.setattr(Recalled, "_asked", counted)
    return sizes


OVERHEAD = 2 + recall.TIMED  # passes before the first step

NETS = {
    "cnn": ("cnn", {"widths": [8, 16, 16]}),
    "mlp": ("mlp", {"hidden": [24, 24]}),
    "mobilenet": ("MobileNetV2", {}),
    "shufflenet": ("ShuffleNetV1", {}),
    "mamba": ("mamba", {"dim": 16, "depth": 2}),
}


# equal bits ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("teacher", NETS)
@pytest.mark.parametrize("augment", [{"crop": 1, "flip": True}, {"crop": 1}, {}], ids=["crop, flip", "crop", "none"])
def test_the_student_has_the_bits_that_a_live_teacher_gives_it(desk: Desk, asked, teacher: str, augment) -> None:
    how = {"recipe_": recipe(augment=augment), "teacher": NETS[teacher]}
    live = desk.train(KD(), stored=False, **how)
    for filling in (True, False):
        asked.clear()
        trained = desk.train(KD(), **how)
        assert_same(states(trained.answer), states(live.answer))
        assert trained.curves == live.curves
        assert len(asked) > OVERHEAD if filling else len(asked) == OVERHEAD
        assert set(asked) == {32}
    assert desk.told == []


METHODS = {"kd": KD(), "two views": MLKD(), "stages": Chain(), "repeated": Active(), "steps": KD(), "parts": KD()}
RECIPES = {
    "steps": {"epochs": None, "steps": 13, "validate_every": 5},
    "parts": {"accumulate": 2, "checkpoint_every": 2},
    "stages": {"validate_every": 2},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_shape_of_training_ends_with_the_same_bits_and_resumes_to_them(desk: Desk, asked, name: str) -> None:
    method, how = METHODS[name], {"recipe_": recipe(**RECIPES.get(name, {}))}
    live = desk.train(method, stored=False, **how)
    saved: list[State] = []
    whole = Engine(desk.work(method, **how), save=lambda state: saved.append(snapshot(state))).train()
    assert len(asked) > OVERHEAD
    assert_same(states(whole.answer), states(live.answer))
    assert whole.curves == live.curves
    for state in saved[:-1]:
        for path in tables(desk.folder / "teachers"):
            path.unlink()
        again = desk.train(method, state=state, **how)
        assert_same(states(again.answer), states(live.answer))
        assert (again.curves, again.images) == (live.curves, live.images)


def test_other_seeds_ask_only_for_what_no_seed_has_asked_for(desk: Desk, asked) -> None:
    batches = 2 * (len(desk.loaded.train.labels) // 32)
    passes = []
    for seed in range(6):
        asked.clear()
        trained = desk.train(KD(), seed=seed)
        assert_same(states(trained.answer), states(desk.train(KD(), stored=False, seed=seed).answer))
        passes.append(len(asked) - OVERHEAD)
    expected = [batches * (17 / 18) ** (2 * seed) for seed in range(6)]
    assert passes == pytest.approx(expected, abs=3)


def test_views_are_numbered_as_they_are_drawn(loaded: DataSet) -> None:
    augment, index = Augment(crop=1, flip=True), torch.arange(40).repeat(30)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for epoch in range(30):
        part = index[:40]
        number = drawn(part, augment, seed=0, epoch=epoch)
        x = pixels(loaded.train.images, part, augment=augment, seed=0, epoch=epoch, mean=loaded.mean, std=loaded.std)
        for at, key in enumerate(zip(part.tolist(), number.tolist(), strict=True)):
            assert torch.equal(seen.setdefault(key, x[at]), x[at])
    assert {number for _, number in seen} == set(range(choices(augment) or 0)) == set(range(18))


@pytest.mark.parametrize(
    ("method", "changed", "expected"),
    [
        (KD(), {}, True),
        (MLKD(), {}, True),
        (Mutual(), {}, True),
        (FitNet(), {}, False),
        (Mixup(), {}, False),
        (KD(), {"random_resized_crop": {}}, False),
        (KD(), {"crop": 1, "rand_augment": {}}, False),
        (KD(), {"crop": 1, "cutmix": {}}, False),
    ],
)
def test_answers_are_looked_up_only_where_that_is_exact(method: Method, changed: dict, expected: bool) -> None:
    changes = {"augment": changed} if changed else {}
    assert (recall.views(method, recipe(**changes)) is not None) == expected


def test_draws_are_no_stored_answers() -> None:
    @dataclass(frozen=True)
    class Drawing(KD):
        def needs(self) -> Needs:
            return Needs(draws=2)

    assert recall.views(Drawing(), recipe()) is None


# networks of which it is not true ------------------------------------------------------------------------------------
class Odd(nn.Module):
    """A linear teacher whose answers depend on what the test says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.how, self.net = how, nn.Linear(64, 10)
        self.kd_taps, self.kd_classifier = {}, "net"

    def forward(self, x):
        z = self.net(x.flatten(1))
        if self.how == "neighbours":
            return z - z.mean(0)
        if self.how == "place":
            return z + torch.arange(len(z))[:, None]
        if self.how == "last place":
            return z + (torch.arange(len(z)) == len(z) - 1)[:, None]
        if self.how == "random":
            return F.dropout(z, 1e-9, training=True)
        return z


@pytest.mark.parametrize("how", ["neighbours", "place", "last place", "random"])
def test_a_network_whose_rows_are_not_their_own_runs_live(desk: Desk, how: str) -> None:
    def trained(stored: bool) -> Trained:
        work = desk.work(KD(), stored)
        return Engine(dataclasses.replace(work, models={**work.models, "teacher": Odd(how)})).train()

    assert_same(states(trained(True).answer), states(trained(False).answer))
    assert tables(desk.folder / "teachers") == []


# trust ---------------------------------------------------------------------------------------------------------------
def test_answers_of_other_code_are_set_aside_and_made_again(desk: Desk) -> None:
    desk.train(KD(), teacher=NETS["cnn"])
    (path,) = tables(desk.folder / "teachers")
    other = desk.train(KD(), teacher=NETS["mlp"])  # the same identity, as after a change of the network's code
    assert_same(states(other.answer), states(desk.train(KD(), stored=False, teacher=NETS["mlp"]).answer))
    assert desk.told == [
        f"t: the teacher no longer says what its stored answers say; they are set aside as {path.name}.damaged "
        "and made again"
    ]
    assert path.exists()


def test_a_damaged_table_is_not_believed(desk: Desk) -> None:
    live = states(desk.train(KD(), stored=False).answer)
    desk.train(KD())
    (path,) = tables(desk.folder / "teachers")
    whole = path.read_bytes()
    for damage in (
        whole[: len(whole) // 2],
        whole[:1001] + whole[1000:-1],
        bytes(b ^ (n % 7 == 0) for n, b in enumerate(whole)),
    ):
        path.write_bytes(damage)
        assert_same(states(desk.train(KD()).answer), live)


@pytest.mark.parametrize("room", [0, 1000])
def test_without_room_the_teacher_runs_on_every_batch(desk: Desk, room: int) -> None:
    desk.room = room
    assert_same(states(desk.train(KD()).answer), states(desk.train(KD(), stored=False).answer))
    assert len(desk.told) == 1
    assert desk.told[0].startswith("the teacher runs on every batch: its answers on 18 views take 0.19 MB, and ")


def test_a_full_disk_costs_no_training(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    live = states(desk.train(KD(), stored=False).answer)
    real, written = recall.Table.write, []

    def full(self, cells, rows):
        written.append(len(cells))
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        real(self, cells, rows)

    monkeypatch.setattr(recall.Table, "write", full)
    assert_same(states(desk.train(KD()).answer), live)
    assert desk.told == [f"the teacher runs on every batch: {desk.own}: No space left on device"]


# interrupts ----------------------------------------------------------------------------------------------------------
def test_an_interrupt_while_answers_are_made_keeps_them_and_the_training(desk: Desk, monkeypatch, asked) -> None:
    live = states(desk.train(KD(), stored=False).answer)
    real, saved = recall.Table.write, []
    written: list[int] = []

    def write(self, cells, rows):
        real(self, cells, rows)
        written.append(len(cells))
        if len(written) == 9:  # in the second epoch
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(recall.Table, "write", write)
    with pytest.raises(KeyboardInterrupt):
        Engine(desk.work(KD()), save=lambda state: saved.append(snapshot(state))).train()
    assert saved[-1].epoch == 1
    assert saved[-1].step == 0
    assert len(written) == 9
    asked.clear()
    assert_same(states(desk.train(KD(), state=saved[-1]).answer), live)
    assert len(written) == 9 + len(asked) - OVERHEAD


# cost ----------------------------------------------------------------------------------------------------------------
def test_a_training_costs_the_same_whoever_came_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which a pass of the teacher takes one second and everything else none."""
    now = [0.0]
    real = Recalled._asked

    def slow(self, x):
        now[0] += 1.0
        return real(self, x)

    monkeypatch.setattr(Recalled, "_asked", slow)
    monkeypatch.setattr("kdbench.train.clock.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("kdbench.train.clock.time.process_time", lambda: 2 * now[0])
    steps = 2 * (len(desk.loaded.train.labels) // 32)
    for method, passes in ((KD(), steps), (KD(), steps), (MLKD(), 2 * steps)):
        trained = desk.train(method)
        assert (trained.seconds, trained.cpu_seconds, trained.looked_up) == (passes, 2 * passes, passes)
    saved: list[State] = []
    Engine(desk.work(KD(), seed=1), save=lambda state: saved.append(snapshot(state))).train()
    resumed = desk.train(KD(), state=saved[0], seed=1)
    assert (resumed.seconds, resumed.cpu_seconds, resumed.looked_up) == (steps, 2 * steps, steps)


def test_a_live_teacher_owes_nothing(desk: Desk) -> None:
    trained = desk.train(FitNet())
    assert trained.looked_up == 0
    assert trained.seconds > 0


def test_a_pass_is_timed_on_the_batch_of_the_job(desk: Desk) -> None:
    engine = Engine(desk.work(KD()))
    voices = []
    real = engine.stepper.advance

    def watched(run, count):
        voices.extend(run.frozen.values())
        return real(run, count)

    engine.stepper.advance = watched  # type: ignore[method-assign]
    engine.train()
    assert isinstance(voices[0], Recalled)
    assert voices[0].pass_.wall > 0
    assert voices[0].settle() == (Seconds(), Seconds())


# methods that change what the teacher sees ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Darker(Wrapper):
    over: Method = KD()

    def batch(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, x=batch.x / 2)


def test_a_method_that_changes_its_batches_hears_a_live_teacher(desk: Desk) -> None:
    assert_same(states(desk.train(Darker()).answer), states(desk.train(Darker(), stored=False).answer))
    assert tables(desk.folder / "teachers") == []

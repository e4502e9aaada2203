"""The crew: order, isolation, retries and room on a device, with scripted workers; then with real processes."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training import LITTLE

from kdbench.cli.options import parse_duration
from kdbench.errors import UserError
from kdbench.run import roster, runner, worker
from kdbench.run.crew import Crew, Hand
from kdbench.run.opened import Setting
from kdbench.run.runner import Listener
from kdbench.run.store import Store
from kdbench.train import lease
from kdbench.train.devices import pick_devices

SUITE = LITTLE.replace(
    "methods:",
    """
  q:
    teacher: {model: cnn, options: {widths: [8, 8, 8]}, train: {epochs: 3}}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
methods:""",
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "BACK_OFF", 0.01)


def setting(folder: Path, text: str = SUITE) -> Setting:
    (folder / "s.yaml").write_text(text)
    return Setting(folder / "s.yaml", folder, folder / "board", folder / "runs")


class Process:
    """A worker in a thread: what it answers to each task is in the script's hands."""

    def __init__(self, connection, script: Callable[[tuple], object]) -> None:
        self.connection, self.script, self.exitcode, self.tasks = connection, script, None, 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.connection.send((worker.READY,))
            while (task := self.connection.recv()) is not None:
                for event in self.script(task):
                    if isinstance(event, int):
                        self.exitcode = event
                        self.connection.close()
                        return
                    self.connection.send(event)
            self.exitcode = 0
        except (EOFError, OSError):
            self.exitcode = -15

    def join(self, timeout: float | None = None) -> None:
        self.thread.join(0.5)

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        pass

    kill = terminate


class Scripted(Crew):
    """A crew of threads that follow `script(task, crew) -> events`."""

    script: Callable[..., object]

    def _hire(self, device: str) -> Hand:
        mine, theirs = multiprocessing.Pipe()
        return Hand(Process(theirs, lambda task: self.script(task, self)), mine, device)


class Bench:
    """A desk with jobs, a store, and a crew whose workers follow a script."""

    def __init__(self, folder: Path) -> None:
        self.setting = setting(folder)
        self.opened = self.setting.open("cpu")
        self.by_key = {job.key: job for job in self.opened.jobs}
        self.log: list[tuple] = []
        self.warned: list[str] = []
        self.guard = threading.Lock()

    def finish(self, key: str) -> tuple:
        result = runner.failed(self.by_key[key], "")
        Store(self.setting.root, "little").write(type(result)(**{**vars(result), "status": "ok"}))
        return (worker.DONE, key, True)

    def obey(self, task: tuple) -> list:
        kind, key, _ = task
        return [(worker.TAUGHT, key, "")] if kind == "teacher" else [self.finish(key)]

    def run(self, script: Callable[..., object] | None = None, **options):
        def scripted(task, crew):
            with self.guard:
                self.log.append(task)
            return (script or (lambda task, crew: self.obey(task)))(task, crew)

        made = Scripted(
            self.opened.jobs,
            Store(self.setting.root, "little"),
            self.setting,
            listener=Listener(warn=self.warned.append),
            **{"workers": 2, **options},
        )
        made.script = scripted
        self.crew = made
        return made.run()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_teachers_first_then_seed_by_seed(bench: Bench) -> None:
    summary = bench.run(workers=1)
    assert [kind for kind, _, _ in bench.log] == ["teacher"] * 2 + ["job"] * 8
    assert [bench.by_key[key].seed for kind, key, _ in bench.log if kind == "job"] == [0] * 4 + [1] * 4
    assert summary.trained == 8
    assert [result.status for result in summary.results] == ["ok"] * 8
    bench.log.clear()
    assert bench.run().trained == 0
    assert bench.log == []


def test_a_job_waits_for_its_own_teacher_only(bench: Bench) -> None:
    slow = threading.Event()
    teachers = [role.key for role in runner.first_roles(bench.opened.jobs)]
    seen: list[str] = []

    def script(task, made):
        kind, key, _ = task
        if key == teachers[0]:
            assert slow.wait(20)
        if kind == "job":
            seen.append(bench.by_key[key].pair)
            if len(seen) == 4:
                slow.set()
        return bench.obey(task)

    bench.run(script)
    assert seen[:4] == ["q"] * 4


def test_a_teacher_that_fails_costs_its_pair_only_and_is_tried_once(bench: Bench) -> None:
    teacher = bench.opened.jobs[0].frozen["teacher"].key

    def script(task, made):
        return (
            [(worker.TAUGHT, teacher, "its teacher cnn failed: on purpose")] if task[1] == teacher else bench.obey(task)
        )

    summary = bench.run(script)
    assert {(r.pair, r.status) for r in summary.results} == {("p", "failed"), ("q", "ok")}
    assert {r.reason for r in summary.troubled} == {"its teacher cnn failed: on purpose"}
    assert [key for _, key, _ in bench.log].count(teacher) == 1


def test_out_of_memory_is_tried_with_fewer_neighbours_and_final_alone(bench: Bench) -> None:
    victim = bench.opened.jobs[1].key
    rooms: list[tuple[int, bool]] = []

    def script(task, made):
        if task[1] != victim:
            return bench.obey(task)
        rooms.append((made.room["cpu"], task[2]))
        if not task[2]:
            return [(worker.MEMORY, victim, "out of memory on cpu: 3 GB")]
        Store(bench.setting.root, "little").write(runner.failed(bench.by_key[victim], "out of memory on cpu: 3 GB"))
        return [(worker.DONE, victim, True)]

    summary = bench.run(script, workers=3)
    assert rooms[0] == (3, False)
    assert rooms[-1] == (1, True)
    assert [r.reason for r in summary.troubled] == ["out of memory on cpu: 3 GB"]
    assert any("ran out of memory" in sentence for sentence in bench.warned)


def test_a_worker_that_dies_costs_nothing_and_three_deaths_one_job(bench: Bench) -> None:
    first, second = bench.opened.jobs[0].key, bench.opened.jobs[1].key
    deaths = {first: 0, second: 0}

    def script(task, made):
        key = task[1]
        if key == second or (key == first and deaths[key] == 0):
            deaths[key] += 1
            return [-11]
        return bench.obey(task)

    summary = bench.run(script)
    assert [(r.method, r.reason.partition(" (log")[0]) for r in summary.troubled] == [
        ("kd", "its worker died 3 times (SIGSEGV)")
    ]
    assert deaths == {first: 1, second: 3}
    assert sum("died (SIGSEGV); it is tried again" in sentence for sentence in bench.warned) == 3


def test_deaths_count_anew_after_an_epoch(bench: Bench) -> None:
    victim, lives = bench.opened.jobs[0].key, []

    def script(task, made):
        if task[1] == victim and len(lives) < 6:
            lives.append(1)
            return [(worker.EPOCH, "x", None), -9]
        return bench.obey(task)

    assert bench.run(script).troubled == []
    assert len(lives) == 6


def test_a_job_of_another_run_is_awaited_and_the_rest_goes_on(bench: Bench) -> None:
    victim, asked = bench.opened.jobs[0].key, []

    def script(task, made):
        if task[1] == victim and len(bench.log) < 10:
            asked.append(1)
            return [(worker.BUSY, victim)]
        return bench.obey(task)

    assert bench.run(script, workers=1).troubled == []
    assert asked
    assert sum("another run" in sentence for sentence in bench.warned) == 1


def test_what_is_wrong_with_the_input_stops_the_crew_with_its_sentences(bench: Bench) -> None:
    with pytest.raises(UserError) as raised:
        bench.run(lambda task, made: [(worker.STOP, "s.yaml:1:1: the disk is full", "s.yaml:2:1: so is the other")])
    assert str(raised.value).splitlines() == ["s.yaml:1:1: the disk is full", "s.yaml:2:1: so is the other"]


def test_a_worker_passes_on_what_is_wrong_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(*arguments: object) -> None:
        raise UserError("one", Path("two"))

    monkeypatch.setattr(worker, "_serve", serve)
    monkeypatch.setattr(worker, "follow", lambda parent: None)
    monkeypatch.setattr(worker.signal, "signal", lambda number, handler: None)
    mine, theirs = multiprocessing.Pipe()
    worker.main(theirs, None, "cpu", 1, 0)  # type: ignore[arg-type]
    assert mine.recv() == (worker.STOP, "one", "two")


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_with_a_spoilt_device_is_replaced(bench: Bench, late: bool) -> None:
    def script(task, made):
        yield from bench.obey(task)
        while late and not (made.hands and (given := made.hands[0].assignment) and given.key != task[1]):
            if len(bench.log) == 10:  # nothing is left to be given
                break
            time.sleep(0.001)
        yield (worker.SPENT,)
        yield 0

    summary = bench.run(script, workers=1 if late else 2)
    assert summary.troubled == []
    assert {key for _, key, _ in bench.log} >= set(bench.by_key)  # a task given too late is given again
    assert all(bench.crew.store.done(key) for key in bench.by_key)


def test_jobs_are_spread_over_devices(bench: Bench) -> None:
    seen = set()

    def script(task, made):
        seen.update(hand.device for hand in made.hands)
        return bench.obey(task)

    bench.run(script, workers=2, devices=("cuda:0", "cuda:1"))
    assert seen == {"cuda:0", "cuda:1"}


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-3m", "0", "soon", "nan", "inf"])
def test_what_is_no_duration_gets_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="--timeout"):
        parse_duration(text)


def test_devices_that_are_not_here_get_a_sentence() -> None:
    assert pick_devices("cpu,cpu") == ("cpu",)
    for text in ("cuda:99", "toaster", ""):
        with pytest.raises(UserError, match="--devices"):
            pick_devices(text)


METHOD = """
import os, signal, time
from dataclasses import dataclass
from kdbench.method import Method, knob
from kdbench.losses import supervised

@dataclass(frozen=True)
class Odd(Method):
    kind: str = knob("die", choices=["die", "memory", "hang"])

    def loss(self, learner, teachers, batch, heads):
        if self.kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "memory":
            raise MemoryError("no room")
        if self.kind == "hang":
            time.sleep(600)
        return {"ce": supervised(learner, batch)}
"""


def odd(folder: Path, kinds: tuple[str, ...]) -> Setting:
    (folder / "odd.py").write_text(METHOD)
    methods = "methods:\n  none:\n" + "".join(f"  {kind}: {{method: ./odd.py, kind: {kind}}}\n" for kind in kinds)
    return setting(folder, LITTLE.replace("methods:\n  none:\n  kd:\n", methods).replace("seeds: [0, 1]", "seeds: [0]"))


@pytest.mark.parametrize(
    "kinds", [("die",), pytest.param(("die", "memory", "hang"), marks=pytest.mark.slow)], ids=["death", "all"]
)
def test_real_processes_isolate_deaths_memory_and_endless_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
) -> None:
    monkeypatch.setattr(roster, "DEATHS", 1)
    made = odd(tmp_path, kinds)
    opened = made.open("cpu")
    summary = Crew(opened.jobs, opened.store, made, workers=len(kinds), timeout=8 if "hang" in kinds else None).run()
    assert {r.method: r.status for r in summary.results} == {"none": "ok", **dict.fromkeys(kinds, "failed")}
    expected = {
        "die": "its worker died 1 times (SIGKILL)",
        "memory": "out of memory on cpu: no room",
        "hang": "no result after 8 s (--timeout)",
    }
    assert all(result.reason.startswith(expected[result.method]) for result in summary.troubled)
    assert all(lease.holder(path) is None for path in (tmp_path / "runs" / "leases").iterdir())
    for job in opened.jobs:
        assert f"{job.name} seed 0 on cpu" in (tmp_path / "runs" / "logs" / f"{job.key}.txt").read_text()

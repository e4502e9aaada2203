"""Work done elsewhere: with an executor whose machines are in this process, and do what a script says."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path

import pytest
from commands import kdbench
from training import LITTLE

from kdbench.errors import UserError
from kdbench.run import remote, roster, runner, worker
from kdbench.run.opened import Setting
from kdbench.run.remote import Lost, Remote, Task, anywhere, report_missing
from kdbench.run.roster import Roster
from kdbench.run.runner import Listener
from kdbench.run.shard import Shard
from kdbench.run.store import Store
from kdbench.train import checkpoint
from kdbench.train.lease import Lease


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "BACK_OFF", 0.01)
    monkeypatch.setattr(remote, "LATE", 0.0)


class Near:
    """An executor of scripted machines. What is launched is noted; calls end in the order of their launch."""

    device = "cpu"

    def __init__(self, answer: Callable[[Task], object], crowded: bool = False) -> None:
        self.answer, self.crowded = answer, crowded
        self.launched: list[Task] = []
        self.batches: list[int] = []
        self.waiting: dict[int, Task] = {}
        self.most = 0
        self.entered = self.cancelled = 0

    def __enter__(self) -> Near:
        self.entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.entered -= 1

    def launch(self, calls: Sequence[Task]) -> Sequence[Hashable]:
        assert self.entered
        first = len(self.launched)
        self.launched += [pickle.loads(pickle.dumps(call)) for call in calls]
        self.batches.append(len(calls))
        self.waiting |= {first + number: call for number, call in enumerate(calls)}
        self.most = max(self.most, len(self.waiting))
        return list(range(first, len(self.launched)))

    def ended(self, handles: Collection[Hashable]) -> Mapping[Hashable, object]:
        assert set(handles) == set(self.waiting)
        if not handles:
            return {}
        first = min(self.waiting)
        return {first: self.answer(self.waiting.pop(first))}

    def cancel(self, handles: Collection[Hashable]) -> None:
        self.cancelled += len(handles)


class Bench:
    """A suite, its roster, and machines that finish what they are given unless a script says otherwise."""

    def __init__(self, folder: Path) -> None:
        (folder / "s.yaml").write_text(LITTLE)
        self.setting = Setting(folder / "s.yaml", folder, folder / "board", folder / "runs")
        self.opened = self.setting.open("cpu")
        self.by_key = {job.key: job for job in self.opened.jobs}
        self.warned: list[str] = []

    def finish(self, call: Task) -> list[worker.Event]:
        if call.kind == "teacher":
            return [(worker.TAUGHT, call.key, "")]
        result = runner.failed(self.by_key[call.key], "")
        Store(self.setting.root, "little").write(type(result)(**{**vars(result), "status": "ok"}))
        return [(worker.DONE, call.key, True)]

    def run(self, script: Callable[[Task], object] | None = None, *, limit: int | None = None, crowded: bool = False):
        self.near = Near(script or self.finish, crowded)
        work = Roster(
            self.opened.jobs, Store(self.setting.root, "little"), self.setting.runs, Listener(warn=self.warned.append)
        )
        return Remote(work, self.setting, self.near, limit).run()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_teachers_first_then_all_jobs_at_once_and_nothing_twice(bench: Bench) -> None:
    summary = bench.run()
    assert [call.kind for call in bench.near.launched] == ["teacher"] + ["job"] * 4
    assert bench.near.batches == [1, 4]
    assert (summary.trained, bench.near.entered) == (4, 0)
    assert (bench.run().trained, bench.near.launched) == (0, [])


def test_no_more_at_a_time_than_asked(bench: Bench) -> None:
    bench.run(limit=2)
    assert bench.near.most == 2


def test_a_machine_that_is_lost_costs_an_attempt_and_progress_resets_the_count(bench: Bench) -> None:
    victim, tries = bench.opened.jobs[1].key, []

    def script(call: Task) -> object:
        if call.key != victim:
            return bench.finish(call)
        tries.append(call)
        if len(tries) == 2:  # an epoch was saved before it died
            path = checkpoint.path_of(bench.setting.runs, victim)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return Lost("the node is gone")

    summary = bench.run(script)
    assert len(tries) == 4
    (result,) = summary.troubled
    assert (result.key, result.reason) == (
        victim,
        f"its worker died 3 times (the node is gone) (log: logs/{victim}.txt)",
    )


def test_a_machine_that_is_lost_after_its_work_was_done_has_done_it(bench: Bench) -> None:
    def script(call: Task) -> object:
        bench.finish(call)
        return Lost("gone") if call.kind == "job" else [(worker.TAUGHT, call.key, "")]

    summary = bench.run(script)
    assert (summary.trained, summary.troubled, len(bench.near.launched)) == (4, [], 5)


def test_a_teacher_that_fails_costs_its_students_no_launch(bench: Bench) -> None:
    reason = "its teacher cnn failed: on purpose"
    summary = bench.run(lambda call: [(worker.WARN, "odd"), (worker.TAUGHT, call.key, reason)])
    assert len(bench.near.launched) == 1
    assert {result.reason for result in summary.troubled} == {reason}
    assert bench.warned == ["odd"]


def test_out_of_memory_is_tried_once_more_with_a_device_of_its_own(bench: Bench) -> None:
    seen = []

    def script(call: Task) -> object:
        if call.key != bench.opened.jobs[0].key:
            return bench.finish(call)
        seen.append(call.last)
        return bench.finish(call) if call.last else [(worker.MEMORY, call.key, "3 GB")]

    assert bench.run(script, crowded=True).trained == 4
    assert seen == [False, True]
    assert {call.last for call in bench.near.launched if call.key != bench.opened.jobs[0].key} == {False}
    assert all(call.last for call in _last_of(bench))


def _last_of(bench: Bench) -> list[Task]:
    Store(bench.setting.root, "little").folder.rename(bench.setting.root / "away")
    bench.run()
    return bench.near.launched


def test_what_another_run_holds_is_awaited_and_not_launched(bench: Bench) -> None:
    victim = bench.opened.jobs[0]
    lease = Lease.acquire(bench.setting.runs / "leases" / victim.key, victim.title)
    assert lease is not None

    def script(call: Task) -> object:
        if sum(one.kind == "job" for one in bench.near.launched) == 3 and len(bench.near.waiting) == 0:
            bench.finish(Task(bench.setting, "cpu", "job", victim.key, True))  # the other run has done it
            lease.release()
        return bench.finish(call)

    summary = bench.run(script)
    assert victim.key not in {call.key for call in bench.near.launched}
    assert (len(summary.results), summary.trained) == (4, 3)
    assert any("is being trained by another run" in sentence for sentence in bench.warned)


def test_what_a_machine_finds_wrong_ends_the_run_and_cancels_the_rest(bench: Bench) -> None:
    def script(call: Task) -> object:
        return bench.finish(call) if call.kind == "teacher" else [(worker.STOP, "node7: the disk is full")]

    with pytest.raises(UserError, match="node7: the disk is full"):
        bench.run(script)
    assert (bench.near.cancelled, bench.near.entered) == (3, 0)


def test_folders_that_are_not_shared_are_told(bench: Bench) -> None:
    def script(call: Task) -> object:
        return [(worker.DONE, call.key, True)] if call.kind == "job" else bench.finish(call)

    with pytest.raises(UserError, match="must be on a folder that all machines share"):
        bench.run(script)
    with pytest.raises(UserError, match=r"^node1: does not see /a/runs; --executor ray needs .*--shard"):
        report_missing([("node1", ["/a/runs"]), ("node2", [])], "--executor ray")
    report_missing([("node2", [])], "--executor ray")


def test_real_tasks_give_what_a_run_here_gives_and_their_mistakes_are_told_with_the_machine(tmp_path: Path) -> None:
    made = Bench(tmp_path)
    assert made.run(lambda call: call()).trained == 4
    assert kdbench(tmp_path, "run", "s.yaml", "--results", "here", "--runs", "h").returncode == 0
    here, there = (Store(tmp_path / root, "little").results for root in ("here", "board"))
    assert {key: (r.scores, r.curves) for key, r in here.items()} == {
        key: (r.scores, r.curves) for key, r in there.items()
    }
    ((name, sentence),) = Task(made.setting, "cpu", "job", "0123456789ab", True)()
    assert (name, "it was changed while it ran" in sentence) == (worker.STOP, True)


def test_a_setting_travels_without_the_directory_it_was_given_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_DATA", "images")
    sent = anywhere(Setting(Path("s.yaml"), shard=Shard(0, 2)))
    assert (sent.suite, sent.root, sent.runs) == tuple(tmp_path / name for name in ("s.yaml", "leaderboard", "runs"))
    assert (sent.data_root, sent.shard) == (tmp_path / "images", Shard(0, 2))
    monkeypatch.delenv("KDBENCH_DATA")
    assert anywhere(Setting(Path("s.yaml"))).data_root is None  # each machine has a default of its own

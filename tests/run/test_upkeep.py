"""Looking after runs: status, retry, merge, clean."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from commands import kdbench

from kdbench.board import publish
from kdbench.errors import UserError
from kdbench.result import Cost, Result
from kdbench.run import upkeep
from kdbench.run.log import Log, path_of
from kdbench.run.opened import Opened, Setting
from kdbench.run.runner import failed
from kdbench.run.store import Store
from kdbench.train.lease import Lease

SUITE = """
name: little
data: {name: digits, fraction: 0.2}
recipe: {epochs: 1, batch_size: 32, optimizer: {lr: 0.02}}
pairs:
  p:
    teacher: {model: cnn, options: {widths: [8, 16, 16]}}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
methods: {none: , kd: }
seeds: [0, 1]
"""


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    (tmp_path / "s.yaml").write_text(SUITE)
    return Setting(tmp_path / "s.yaml", tmp_path, tmp_path / "leaderboard", tmp_path / "runs")


@pytest.fixture
def opened(setting: Setting) -> Opened:
    return setting.open("cpu")


def ok(opened: Opened, number: int, **changes: object) -> Result:
    return dataclasses.replace(failed(opened.jobs[number], ""), status="ok", **changes)


# status --------------------------------------------------------------------------------------------------------------
def test_status_tells_what_is_done_running_waiting_and_in_trouble(opened: Opened, setting: Setting) -> None:
    jobs = opened.jobs
    opened.store.write(ok(opened, 0))
    opened.store.write(failed(jobs[1], "ZeroDivisionError: on purpose"))
    log = Log(path_of(setting.runs, jobs[2].key))
    log.say("epoch 3/9, 10 images/s")
    with (
        Lease.acquire(setting.runs / "leases" / jobs[2].key, jobs[2].title),
        Lease.acquire(setting.runs / "leases" / "abc", "teacher cnn"),
    ):
        rows, total = upkeep.status(opened.suite, opened.store, setting.runs)
    assert total == "little: 4 jobs: 1 done, 1 running, 1 waiting, 1 failed"
    assert [(row["job"], row["state"]) for row in rows] == [
        ("p/none seed 1", "running"),
        ("teacher cnn", "running"),
        ("p/kd seed 0", "failed"),
    ]
    assert str(rows[0]["note"]).endswith("; epoch 3/9, 10 images/s")
    assert rows[2]["note"] == "ZeroDivisionError: on purpose"


def test_status_forgets_a_dead_owner(opened: Opened, setting: Setting) -> None:
    path = setting.runs / "leases" / opened.jobs[0].key
    lease = Lease.acquire(path, opened.jobs[0].title)
    path.write_text(path.read_text().replace(f'"{lease.owner.started}"', '"1"'))
    assert upkeep.status(opened.suite, opened.store, setting.runs)[1] == "little: 4 jobs: 4 waiting"


# retry ---------------------------------------------------------------------------------------------------------------
def test_retry_does_troubled_jobs_only_and_replaces_final_ones(opened: Opened, setting: Setting) -> None:
    folder = setting.suite.parent
    opened.store.write(dataclasses.replace(failed(opened.jobs[0], "nan"), status="diverged"))
    opened.store.write(failed(opened.jobs[3], "crashed"))
    done = kdbench(folder, "retry", "s.yaml", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"key"') == 2
    done = kdbench(folder, "retry", "s.yaml", "--data-root", ".")
    assert done.returncode == 0, done.stderr
    stored = Store(setting.root, "little").results
    assert {key: result.status for key, result in stored.items()} == {
        opened.jobs[0].key: "ok",
        opened.jobs[3].key: "ok",
    }
    again = kdbench(folder, "retry", "s.yaml")
    assert (again.returncode, again.stdout.strip()) == (0, "nothing to retry: no job failed, diverged or was skipped")


def test_board_and_status_name_spoilt_records_and_go_on(opened: Opened, setting: Setting, tmp_path: Path) -> None:
    cost = Cost(1.0, 2.0, 300.0, 80.0, 10, 4, 6, 7, 8, 9, 0.1, 0.2, 3)
    paths = [opened.store.write(ok(opened, n, scores={"test/top1": 60.0 + n}, cost=cost)) for n in range(4)]
    whole = [json.loads(path.read_text()) for path in paths]
    for number, value in enumerate((-1, 150, 1e308, True, "93", None, [], math.nan, math.inf, "deep")):
        spoilt = json.dumps(whole[0] | {"scores": {"test/top1": value}}) if value != "deep" else "[" * 100_000
        paths[0].write_text(spoilt)
        if number in (4, 9):  # the command line once or twice; all of them as functions
            for command in ("board", "status"):
                done = kdbench(tmp_path, command, "s.yaml")
                assert done.returncode == 0, done.stderr
                assert "Traceback" not in done.stderr
                (line,) = done.stderr.splitlines()
                assert paths[0].name in line
        said: list[str] = []
        store = Store(setting.root, "little", said.append)
        assert len(said) == 1
        assert upkeep.status(opened.suite, store, setting.runs)[1] == "little: 4 jobs: 3 done, 1 waiting"
        assert publish.board_of(opened.suite, store).finished == 3
        assert paths[0].read_text() == spoilt  # left where it is
    reason = {"status": "failed", "reason": "<img src=x onerror=alert(1)> | a\n\n# H \x1b[31m"}
    paths[0].write_text(json.dumps(whole[0] | reason))
    done = kdbench(tmp_path, "status", "s.yaml")
    assert "\x1b" not in done.stdout
    assert "<img src=x" in done.stdout


# merge ---------------------------------------------------------------------------------------------------------------
def other(opened: Opened, tmp_path: Path, *results: Result) -> Path:
    store = Store(tmp_path / "other", "little")
    for result in results:
        store.write(result)
    return tmp_path / "other"


def test_merge_joins_what_is_new_and_knows_what_is_the_same(opened: Opened, setting: Setting, tmp_path: Path) -> None:
    opened.store.write(ok(opened, 0))
    source = other(opened, tmp_path, ok(opened, 0), ok(opened, 1))
    merged = upkeep.merge([source], setting.root)
    assert (merged.new, merged.same, merged.conflicts, merged.suites) == (1, 1, [], {"little"})
    assert set(Store(setting.root, "little").results) == {opened.jobs[0].key, opened.jobs[1].key}
    assert upkeep.merge([source / "results"], setting.root).same == 2


def test_merge_keeps_both_of_two_results_of_one_job(opened: Opened, setting: Setting, tmp_path: Path) -> None:
    opened.store.write(ok(opened, 0, scores={"test/top1": 50.0}))
    theirs = ok(opened, 0, scores={"test/top1": 51.0})
    source = other(opened, tmp_path, theirs)
    for _ in range(2):
        merged = upkeep.merge([source], setting.root)
        assert len(merged.conflicts) == 1
        (kept,) = opened.store.folder.glob("*.conflict-*")
        assert Result.from_json(kept.read_text()) == theirs
        assert Store(setting.root, "little").results[opened.jobs[0].key].scores == {"test/top1": 50.0}
    done = kdbench(tmp_path, "merge", "other")
    assert done.returncode == 1
    assert "another result of the same job is kept as" in done.stderr


def test_merge_lets_a_finished_job_replace_a_failed_one_and_not_the_other_way(
    opened: Opened, setting: Setting, tmp_path: Path
) -> None:
    opened.store.write(failed(opened.jobs[0], "here"))
    opened.store.write(ok(opened, 1))
    source = other(opened, tmp_path, ok(opened, 0), failed(opened.jobs[1], "there"))
    merged = upkeep.merge([source], setting.root)
    assert (merged.replaced, merged.same, merged.conflicts) == (1, 1, [])
    assert {result.status for result in Store(setting.root, "little").results.values()} == {"ok"}


def test_merge_leaves_damaged_results_out_and_refuses_empty_folders(
    opened: Opened, setting: Setting, tmp_path: Path
) -> None:
    source = other(opened, tmp_path, ok(opened, 0))
    (path,) = source.glob("results/little/*.json")
    path.write_text(path.read_text()[:100])
    merged = upkeep.merge([source], setting.root)
    assert len(merged.damaged) == 1
    assert merged.new == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no results"):
        upkeep.merge([tmp_path / "empty"], setting.root)


# clean ---------------------------------------------------------------------------------------------------------------
def test_clean_lists_what_no_pending_or_running_job_needs(opened: Opened, setting: Setting) -> None:
    jobs, runs = opened.jobs, setting.runs
    opened.store.write(ok(opened, 0))
    teacher = jobs[0].frozen["teacher"].key
    names = [jobs[0].key, jobs[1].key, teacher, "0123456789ab", "stranger"]
    for name in names:
        (runs / "checkpoints").mkdir(parents=True, exist_ok=True)
        (runs / "checkpoints" / f"{name}.pt").write_bytes(b"x" * 10)
    (runs / "checkpoints" / f".{jobs[1].key}.pt.1234abcd.tmp").write_bytes(b"x")
    (runs / "checkpoints" / "old.pt.damaged").write_bytes(b"x")
    with Lease.acquire(runs / "leases" / "stranger"):
        found = {path.name for path, _ in upkeep.clean(jobs, [opened.store], runs)}
        assert found == {f"{jobs[0].key}.pt", "0123456789ab.pt", "old.pt.damaged"}
    found = {path.name for path, _ in upkeep.clean(jobs, [opened.store], runs)}
    assert found >= {"stranger.pt", f".{jobs[1].key}.pt.1234abcd.tmp"}
    done = kdbench(setting.suite.parent, "clean", "s.yaml", "--dry-run")
    assert "would remove" in done.stdout
    assert (runs / "checkpoints" / "stranger.pt").exists()
    done = kdbench(setting.suite.parent, "clean", "s.yaml")
    assert {path.name for path in (runs / "checkpoints").iterdir()} == {f"{jobs[1].key}.pt", f"{teacher}.pt"}

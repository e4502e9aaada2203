"""Stored answers of teachers in whole runs: what is planned, what the records say, who shares, what is freed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import LITTLE

from kdbench.data.augment import drawn
from kdbench.result import Result
from kdbench.run import upkeep
from kdbench.run.opened import Opened, Setting
from kdbench.run.runner import Listener, run
from kdbench.run.saving import savings
from kdbench.run.store import Store
from kdbench.streams import order
from kdbench.train.table import tables

SUITE = LITTLE.replace("{epochs: 2,", "{epochs: 3, augment: {crop: 1},").replace(
    "  none:\n  kd:\n", "  kd:\n  mlkd:\n  fitnet:\n"
)


@dataclasses.dataclass
class Desk:
    folder: Path

    def setting(self, **options) -> Setting:
        (self.folder / "s.yaml").write_text(SUITE)
        return Setting(self.folder / "s.yaml", self.folder, self.folder / "board", self.folder / "runs", **options)

    def open(self, **options) -> Opened:
        return self.setting(**options).open("cpu")

    def run(self, opened: Opened | None = None, **options) -> list[Result]:
        opened = opened or self.open(**options)
        return run(opened.jobs, opened.bench, opened.store, Listener()).results

    @property
    def tables(self) -> list[Path]:
        return tables(self.folder / "runs" / "teachers")


def science(results: list[Result]) -> list[Result]:
    """As it is read back, without what is measured with a clock, and memory."""
    read = [Result.from_json(dataclasses.replace(result, cost=None).to_json()) for result in results]
    return sorted(read, key=lambda result: result.key)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return Desk(tmp_path_factory.mktemp("live")).run(cache_gb=0.0)


def test_records_are_those_of_live_teachers_and_say_what_was_looked_up(desk: Desk, live: list[Result]) -> None:
    results = desk.run()
    assert science(results) == science(live)
    assert len(desk.tables) == 1
    for result in results:
        assert result.cost is not None
        looked_up = result.method in ("kd", "mlkd")
        assert (result.cost.looked_up_seconds > 0) == looked_up
        assert result.cost.spent_seconds < result.cost.train_seconds or not looked_up
    assert all(result.cost is not None and result.cost.looked_up_seconds == 0 for result in live)


def test_two_workers_share_a_table(desk: Desk, live: list[Result]) -> None:
    desk.setting()
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", "run", "s.yaml", "--workers", "2", "--results", "board"],
        cwd=desk.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert science(list(Store(desk.folder / "board", "little").results.values())) == science(live)
    assert len(desk.tables) == 1


def test_what_is_planned_is_what_is_asked_for(desk: Desk) -> None:
    opened = desk.open()
    found = savings(opened.jobs, opened.bench.data, opened.bench.room)
    (saving,) = set(found.values())
    assert {job.label for job in opened.jobs if (job.key, "teacher") in found} == {"kd", "mlkd"}
    n, augment = len(opened.bench.data.train), opened.jobs[0].recipe.augment
    views = [(seed, epoch, view) for seed in (0, 1) for epoch in range(3) for view in (0, 1)]
    asked: set[tuple[int, int]] = set()
    for seed, epoch, view in views:
        index = order(seed, epoch, n)
        numbers = drawn(index, augment, seed=seed, epoch=epoch, view=view)
        asked |= set(zip(index.tolist(), numbers.tolist(), strict=True))
    assert saving.views == 9
    assert saving.live == 2 * 3 * (1 + 2)
    assert saving.stored == pytest.approx(len(asked) / n, rel=0.02)
    assert f"{saving}" == (
        "p: answers of the teacher cnn on 9 views take 0.093 MB: about 7 passes over the training set instead of 18"
    )
    assert saving.bytes == n * 9 * 48
    (large,) = set(savings(opened.jobs, opened.bench.data, saving.bytes - 1).values())
    assert (large.fits, large.share) == (False, 1.0)
    assert str(large).endswith("more than --cache-gb leaves: it runs on every batch")
    desk.run(opened)
    assert desk.tables[0].stat().st_size == saving.bytes


def test_keys_do_not_know_of_stored_answers(desk: Desk) -> None:
    assert [job.key for job in desk.open().jobs] == [job.key for job in desk.open(cache_gb=0.0).jobs]


def test_tables_are_freed_when_no_job_needs_them(desk: Desk) -> None:
    opened = desk.open()
    some = dataclasses.replace(opened, jobs=[job for job in opened.jobs if job.label == "kd"])
    desk.run(some)
    assert not {path for path, _ in upkeep.clean(opened.jobs, [opened.store], opened.bench.runs)} & set(desk.tables)
    aside = desk.tables[0].with_name("x.rows.damaged")
    aside.write_bytes(b"")
    assert aside in {path for path, _ in upkeep.clean(opened.jobs, [opened.store], opened.bench.runs)}
    assert set(desk.tables) <= {path for path, _ in upkeep.clean(some.jobs, [opened.store], opened.bench.runs)}


def test_a_warning_of_every_job_is_said_once(desk: Desk) -> None:
    opened, told = desk.open(cache_gb=1e-9), []
    opened.bench.warn = told.append
    desk.run(opened)
    assert [sentence for sentence in told if "runs on every batch" in sentence] == told
    assert len(told) == 1

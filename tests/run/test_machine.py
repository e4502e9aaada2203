"""How many workers there are where nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.run import machine
from kdbench.run.machine import GIB, Staff, staff


@pytest.mark.parametrize(
    ("cores", "gib", "pending", "workers", "why"),
    [
        (2, 24, 12, 2, "2 workers (2 cores, 24 GiB free); --workers N chooses"),
        (16, 24, 40, 12, "12 workers (16 cores, 24 GiB free); --workers N chooses"),  # memory is the limit
        (16, 64, 3, 3, "3 workers (16 cores, 64 GiB free); --workers N chooses"),  # more would have nothing to do
        (1, 24, 12, 0, "in this process (1 core, 24 GiB free); --workers N chooses"),
        (8, 1, 12, 0, "in this process (8 cores, 1 GiB free); --workers N chooses"),
        (8, 24, 1, 0, "one job: in this process"),
        (8, 24, 0, 0, ""),
    ],
)
def test_on_a_cpu_cores_memory_and_jobs_decide(monkeypatch, cores, gib, pending, workers, why) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "memory", lambda: gib * GIB)
    assert staff(("cpu",), pending) == Staff(workers, ("cpu",), why)


def test_an_accelerator_has_one_worker() -> None:
    two = ("cuda:0", "cuda:1")
    assert staff(two, 5) == Staff(2, two, "2 workers (cuda:0, cuda:1); --workers N chooses")
    assert staff(("cuda:1",), 5).workers == 1  # a process of its own: a fault costs one job
    assert staff(("cuda:1",), 1).workers == 0


def test_a_containers_limits_count(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    free, here = machine.memory(), machine.cores()
    assert free > 0
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 1500000\nslab 7\n")
    assert (machine.cores(), machine.memory()) == (1, 3_500_000)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cores() == here
    assert machine.memory() > 5_000_000

"""Leases: one owner at a time, dead owners replaced by exactly one, no clock believed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kdbench.train import lease
from kdbench.train.lease import Lease, Owner, birth, holder, waited


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases" / "job"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease.time, "monotonic", clock)
    return clock


def write(path: Path, **changes: object) -> Owner:
    owner = dataclasses.replace(Owner.me(), **changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def test_one_owner_until_it_lets_go(path: Path) -> None:
    first = Lease.acquire(path)
    assert first is not None
    assert Lease.acquire(path) is None
    assert holder(path) == first.owner
    first.release()
    assert not path.exists()
    with Lease.acquire(path) as second:
        assert second.owner.token != first.owner.token
    assert list(path.parent.iterdir()) == []


def test_a_dead_process_of_this_machine_is_replaced_at_once(path: Path) -> None:
    taken = f"Lease.acquire(pathlib.Path({str(path)!r}))"
    code = f"import os, pathlib; from kdbench.train.lease import Lease; {taken}; os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert path.exists()
    assert holder(path) is None
    with Lease.acquire(path) as taken:
        assert holder(path) == taken.owner
    assert list(path.parent.iterdir()) == []


def test_a_reused_pid_is_not_mistaken_for_the_owner(path: Path) -> None:
    write(path, started="1")
    assert Lease.acquire(path) is not None


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert birth(child.pid) is None
    child.wait()
    assert birth(os.getpid())


def test_another_machines_owner_is_replaced_after_silence_only(path: Path, clock: Clock) -> None:
    write(path, machine="elsewhere")
    assert Lease.acquire(path) is None
    clock.now += lease.STALE - 1
    assert Lease.acquire(path) is None
    os.utime(path)  # it lives
    clock.now += lease.STALE - 1
    assert Lease.acquire(path) is None
    clock.now += lease.STALE
    assert Lease.acquire(path) is not None


@pytest.mark.parametrize("times", [(0, 0), (4e9, 4e9)])
def test_touches_from_the_past_and_the_future_are_touches(path: Path, clock: Clock, times) -> None:
    write(path, machine="elsewhere")
    assert Lease.acquire(path) is None
    clock.now += lease.STALE - 1
    os.utime(path, times)
    assert Lease.acquire(path) is None
    clock.now += lease.STALE - 1
    assert Lease.acquire(path) is None


def test_an_empty_file_of_a_killed_writer_is_replaced_after_silence(path: Path, clock: Clock) -> None:
    path.parent.mkdir()
    path.write_text("")
    assert Lease.acquire(path) is None
    clock.now += lease.STALE
    assert Lease.acquire(path) is not None


def test_of_many_takers_exactly_one_wins(path: Path) -> None:
    for _ in range(20):
        write(path, started="1")
        won: list[Lease] = []
        gate = threading.Barrier(8)

        def take(gate: threading.Barrier = gate, won: list[Lease] = won) -> None:
            gate.wait()
            if (mine := Lease.acquire(path)) is not None:
                won.append(mine)

        takers = [threading.Thread(target=take) for _ in range(8)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert len(won) == 1
        assert holder(path) == won[0].owner
        won[0].release()


def test_a_taker_that_died_half_way_does_not_block_for_ever(path: Path, clock: Clock) -> None:
    dead = write(path, started="1")
    path.with_name(f"{path.name}.{dead.token[:8]}.claim").write_text("")
    assert Lease.acquire(path) is None
    clock.now += lease.STALE + 1
    assert Lease.acquire(path) is None  # the claim goes first
    assert Lease.acquire(path) is not None


def test_an_owner_that_slept_notices_that_it_was_replaced(path: Path) -> None:
    slept = Lease.acquire(path)
    other = write(path, machine="elsewhere")
    slept.beat()
    assert slept.lost
    slept.release()
    assert holder(path) == other


def test_the_heart_touches_what_is_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.01)
    monkeypatch.setattr(lease, "_heart", lease._Heart())
    with Lease.acquire(path):
        os.utime(path, (0, 0))
        for _ in range(500):
            if path.stat().st_mtime > 0:
                break
            threading.Event().wait(0.01)
        assert path.stat().st_mtime > 0


def test_waiting_ends_when_the_owner_lets_go(path: Path) -> None:
    first = Lease.acquire(path)
    threading.Timer(0.05, first.release).start()
    with waited(path, poll=0.01) as second:
        assert holder(path) == second.owner


@pytest.mark.parametrize("text", ["[" * 100_000, '{"token": 1}', "[]", "null", '{"pid": "../../etc"}'])
def test_a_lease_that_holds_no_owner_is_like_a_torn_one(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert holder(path) is None
    assert Lease.acquire(path) is None  # until it has been silent for long enough


def test_an_owner_of_the_wrong_types_is_none(path: Path) -> None:
    with Lease.acquire(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"pid": "1/../1"}))
        assert holder(path) is None

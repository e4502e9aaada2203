"""Worker processes: hired with their share of threads, named when they die, ended however they behave."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from kdbench.run import processes


def stubborn(connection: Connection, deaf: bool, threads: int, parent: int) -> None:
    """Says what it was given, then waits; `deaf` to SIGTERM."""
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send((threads, parent))
    time.sleep(600)


def between(connection: Connection, threads: int, parent: int) -> None:
    """Hires one that follows it, tells its number, and dies."""
    child, mine = processes.hire(follower, of=1)
    mine.recv()
    connection.send(child.pid)
    os._exit(0)


def follower(connection: Connection, threads: int, parent: int) -> None:
    processes.follow(parent)
    connection.send("here")
    time.sleep(600)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_process_is_ended_also_where_it_does_not_listen(monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    process, connection = processes.hire(stubborn, deaf, of=1)
    assert connection.recv() == (os.cpu_count(), os.getpid())
    processes.leave(process, patience=0.1)
    assert process.exitcode == (-signal.SIGKILL if deaf else -signal.SIGTERM)


def test_threads_are_the_user_s_where_the_user_chose_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    process, connection = processes.hire(stubborn, False, of=2)
    assert connection.recv()[0] == 0
    processes.end([process], patience=5)
    assert not process.is_alive()


def test_a_process_ends_with_its_parent() -> None:
    process, connection = processes.hire(between, of=1)
    orphan = connection.recv()
    process.join(10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and alive(orphan):
        time.sleep(0.05)
    assert not alive(orphan)


def alive(pid: int) -> bool:
    """Whether a process that is not our child runs; one that only waits to be buried does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("code", "said"), [(None, "it does not answer"), (-9, "SIGKILL"), (-99, "signal 99"), (3, "exit code 3")]
)
def test_causes(code: int | None, said: str) -> None:
    assert processes.cause(code) == said

"""Real kills, full disks and rivals: whatever happens, the same command ends with the numbers of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.run.store import Store

SUITE = """
name: little
data: {name: digits, fraction: 0.5}
recipe: {epochs: 12, batch_size: 32, optimizer: {lr: 0.02}}
pairs:
  p:
    teacher: {model: cnn, options: {widths: [8, 16, 16]}}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
methods: {none: , kd: , crd: {negatives: 16}, mutual: , born_again: }
seeds: [0, 1]
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(folder: Path, *arguments: str) -> tuple[int, str]:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def numbers(folder: Path) -> dict[str, tuple]:
    return {key: (r.status, r.scores, r.curves) for key, r in Store(folder / "leaderboard", "little").results.items()}


def logged(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "runs" / "logs").glob("*.txt"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "s.yaml").write_text(SUITE)
    code, output = finish(folder, "run", "s.yaml")
    assert code == 0, output
    return numbers(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SUITE)
    return tmp_path


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_twenty_kills_at_random_moments_change_no_number(
    folder: Path, undisturbed: dict[str, tuple], workers: str
) -> None:
    chance, kills, runs = random.Random(int(workers)), 0, 0
    while kills < 20:
        runs += 1
        before, process = logged(folder), start(folder, "run", "s.yaml", "--workers", workers)
        while logged(folder) == before and process.poll() is None:
            time.sleep(0.01)
        while process.poll() is None and kills < 20:
            time.sleep(chance.uniform(0, 0.6))
            victims = children(process.pid) if chance.random() < 0.5 else []
            victim = chance.choice(victims) if victims else process.pid
            try:
                os.kill(victim, signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                continue
            if victim == process.pid:
                break
        process.communicate()
        if process.returncode == 0 and len(numbers(folder)) == len(undisturbed):
            break
    code, output = finish(folder, "run", "s.yaml", "--workers", workers)
    assert code == 0, output
    assert kills == 20, f"all was done after {kills} kills"
    assert numbers(folder) == undisturbed
    assert not list((folder / "runs" / "checkpoints").glob("*.pt"))


@pytest.mark.slow
def test_two_runs_at_once_train_nothing_twice(folder: Path, undisturbed: dict[str, tuple]) -> None:
    rivals = [start(folder, "run", "s.yaml") for _ in range(2)]
    outputs = [rival.communicate(timeout=600)[0] for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0], outputs
    assert numbers(folder) == undisturbed
    for path in (folder / "runs" / "logs").glob("*.txt"):
        assert path.read_text().count("epoch 1/") == path.read_text().count("epoch 12/"), path.read_text()
        assert path.read_text().count(" on cpu") <= 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_stops_within_seconds_and_says_how_to_continue(folder: Path, workers: str) -> None:
    process = start(folder, "run", "s.yaml", "--workers", workers)
    while not logged(folder):
        time.sleep(0.05)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "The same command continues" in output
    assert "Traceback" not in output
    assert time.monotonic() - begun < 15  # a few seconds on a free machine


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("what", ["--runs", "--results"])
def test_a_full_disk_stops_with_a_sentence_and_the_run_continues(
    folder: Path, small_disk: Path, undisturbed: dict[str, tuple], workers: str, what: str
) -> None:
    arguments = ("run", "s.yaml", "--workers", workers, what, str(small_disk))
    (small_disk / "ballast").write_bytes(b"x" * 100_000)
    code, output = finish(folder, *arguments)
    assert code == 2, output
    assert "No space left on device" in output
    assert "Traceback" not in output
    for path in small_disk.rglob("*.json"):
        assert path.stat().st_size
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    code, output = finish(folder, *arguments)
    assert code == 0, output
    root = small_disk if what == "--results" else folder / "leaderboard"
    assert {key: (r.status, r.scores, r.curves) for key, r in Store(root, "little").results.items()} == undisturbed

"""`kdbench recipe`: the floor at several rates, on validation alone, never on the suite's seeds, never twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import kdbench

SUITE = """
name: rates
data: {name: digits, fraction: 0.2, val: 60}
recipe: {epochs: 1, batch_size: 64, optimizer: {name: sgd, lr: 0.02}}
pairs:
  p:
    teacher: {model: cnn, options: {widths: [4, 8, 8]}}
    student: {model: mlp, options: {hidden: [8]}}
methods: {none: , kd: }
seeds: [0, 1]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SUITE)
    return tmp_path


def test_the_floor_is_trained_at_each_rate_and_kept(folder: Path) -> None:
    command = ("recipe", "s.yaml", "--factors", "0.5,2", "--seeds", "2", "--results", "board")
    first = kdbench(folder, *command)
    assert (first.returncode, "converged" in first.stdout) == (0, True), first.stderr
    (floor,) = json.loads((folder / "board" / "recipes" / "rates.json").read_text())
    assert set(floor["scores"]) == {"0.5", "1", "2"}
    assert (floor["pair"], floor["rate"], floor["metric"]) == ("p", 0.02, "val/top1")
    assert not set(floor["seeds"]) & {0, 1}
    records = [json.loads(path.read_text()) for path in (folder / "runs" / "recipe").rglob("*.json")]
    assert len(records) == 3 * len(floor["seeds"])
    assert {record["seed"] for record in records} == set(floor["seeds"])
    assert {record["job"]["method"]["name"] for record in records} == {"none"}
    assert not any(name.startswith("test/") for record in records for name in record["scores"])
    rates = {record["job"]["recipe"]["optimizer"]["lr"] for record in records}
    assert rates == {0.01, 0.02, 0.04}
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs" / "recipe").rglob("*.json")}
    assert kdbench(folder, *command).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs" / "recipe").rglob("*.json")} == before


@pytest.mark.parametrize("factors", ["", "0,1", "x", "inf", "-1", "1,,2"])
def test_factors_are_numbers_above_zero(folder: Path, factors: str) -> None:
    done = kdbench(folder, "recipe", "s.yaml", f"--factors={factors}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"--factors {factors}: expects numbers above 0")
    assert not (folder / "runs").exists()


def test_a_suite_without_its_floor_is_a_sentence(folder: Path) -> None:
    (folder / "s.yaml").write_text(SUITE.replace("none: , kd: ", "kd: "))
    done = kdbench(folder, "recipe", "s.yaml")
    assert done.returncode == 2
    assert "no method 'none'" in done.stderr

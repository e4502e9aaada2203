"""What each command imports: the quick ones stay quick because torch and its like stay away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import kdbench
from training import LITTLE

HEAVY = {"numpy", "scipy", "scipy.stats", "matplotlib", "sklearn", "torch", "timm", "optuna"}
TABLES = HEAVY - {"numpy", "scipy"}  # what tables with intervals may not import

# Arguments -> modules that must not be imported. The suite's jobs are done in `board`, and none of them elsewhere.
FORBIDDEN = {
    ("--help",): HEAVY | {"pydantic"},
    ("run", "--help"): HEAVY,
    ("check", "s.yaml"): HEAVY,
    ("schema",): HEAVY,
    ("status", "s.yaml", "--results", "board"): HEAVY,
    ("merge", "board", "--results", "other"): HEAVY,
    ("show", "methods"): HEAVY,
    ("board", "s.yaml", "--results", "board"): TABLES - {"matplotlib"},
    ("run", "s.yaml", "--results", "board"): TABLES,
    ("retry", "s.yaml", "--results", "board"): TABLES,
    ("show", "results", "s.yaml", "--results", "board"): TABLES,
    ("show", "data"): TABLES,
    ("tune", "s.yaml", "--status", "--storage", "sqlite:///studies.db"): HEAVY - {"numpy", "optuna"},
}
CODE = """
import json, sys
sys.argv = ["kdbench", *json.loads(sys.argv[1])]
from kdbench.cli.main import main
try:
    main()
except SystemExit as end:
    print("\\n" + json.dumps([end.code or 0, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose jobs are all done, with its board."""
    made = tmp_path_factory.mktemp("imports")
    (made / "s.yaml").write_text(LITTLE + "tune: {trials: 1}\n")
    assert kdbench(made, "run", "s.yaml", "--results", "board").returncode == 0
    assert kdbench(made, "tune", "s.yaml", "--only", "p/none", "--storage", "sqlite:///studies.db").returncode == 0
    return made


@pytest.mark.parametrize("arguments", FORBIDDEN, ids=" ".join)
def test_quick_commands_import_nothing_heavy(folder: Path, arguments: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in (folder / "board").glob("*.*")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(arguments)], cwd=folder, capture_output=True, text=True, check=True
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert (code, sorted(FORBIDDEN[arguments] & set(modules))) == (0, []), done.stderr
    assert {path: path.read_bytes() for path in (folder / "board").glob("*.*")} == before


def test_what_is_done_is_decided_without_data_only_where_they_cannot_have_changed(tmp_path: Path) -> None:
    """A set of the user's own is read again: its images may be others than those of the results."""
    mine = "import numpy as np\nfrom kdbench import Raw\n\ndef load(root):\n"
    mine += "    images = np.random.default_rng({seed}).integers(0, 255, (60, 1, 8, 8)).astype(np.uint8)\n"
    mine += "    labels = np.arange(60) % 10\n"
    mine += "    return Raw(images, labels, images[:10], labels[:10], (0.5,), (0.5,), 10, 10)\n"
    (tmp_path / "mine.py").write_text(mine.format(seed="len(open('seed.txt').read())"))
    (tmp_path / "seed.txt").write_text("a")
    suite = LITTLE.replace("{name: digits, fraction: 0.2}", '{name: "./mine.py:load"}')
    (tmp_path / "s.yaml").write_text(suite)
    first = kdbench(tmp_path, "run", "s.yaml", "--json", "--only", "p/none", "--seeds", "0")
    assert json.loads(first.stdout)["trained"] == 1, first.stderr
    again = kdbench(tmp_path, "run", "s.yaml", "--json", "--only", "p/none", "--seeds", "0")
    assert json.loads(again.stdout)["trained"] == 0
    (tmp_path / "seed.txt").write_text("another")
    other = kdbench(tmp_path, "run", "s.yaml", "--json", "--only", "p/none", "--seeds", "0")
    assert json.loads(other.stdout)["trained"] == 1


def test_pictures_stay_where_nothing_is_new_and_come_back_where_one_is_missing(folder: Path) -> None:
    picture = folder / "board" / "little.svg"
    kept = picture.read_bytes()
    picture.write_text("<svg/>")
    assert kdbench(folder, "run", "s.yaml", "--results", "board").returncode == 0
    assert picture.read_text() == "<svg/>"
    picture.unlink()
    assert kdbench(folder, "run", "s.yaml", "--results", "board").returncode == 0
    assert picture.read_bytes() == kept


def test_a_first_run_says_at_once_what_it_does_and_at_the_end_what_may_follow(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE)
    done = kdbench(tmp_path, "run", "s.yaml", "--only", "p/none", "--seeds", "0")
    assert done.stderr.startswith("little: 1 of 1 jobs to do; loading PyTorch and the data\n")
    assert "Board: leaderboard/little.md, with its picture leaderboard/little.svg" in done.stdout
    for step in ("1. Read the board", "2. Change s.yaml", "3. Write a method", "docs/writing-a-method.md"):
        assert step in done.stdout
    assert "Next:" not in kdbench(tmp_path, "run", "s.yaml", "--only", "p/none", "--seeds", "0").stdout


def test_results_have_the_same_bits_with_workers_and_without(tmp_path: Path, monkeypatch) -> None:
    """Where nobody sets OMP_NUM_THREADS: every job trains with one thread."""
    (tmp_path / "s.yaml").write_text(LITTLE)
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(3)
    found = []
    for workers in ("0", "2"):
        done = kdbench(
            tmp_path,
            "run",
            "s.yaml",
            "--only",
            "p/kd",
            "--seeds",
            "0",
            "--workers",
            workers,
            "--results",
            workers,
            "--runs",
            "r" + workers,
        )
        assert done.returncode == 0, done.stderr
        assert torch.get_num_threads() == 1
        records = [json.loads(path.read_text()) for path in sorted((tmp_path / workers / "results").rglob("*.json"))]
        found.append([(record["key"], record["scores"], record["curves"]) for record in records])
        assert {record["provenance"]["device_name"].rpartition(", ")[2] for record in records} == {"1 threads"}
    assert len(found[0]) == 1
    assert found[0] == found[1]

"""The command line as a user meets it, from a folder of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from commands import kdbench
from stopping import METHOD, steps, stop
from training import LITTLE

SUITE = LITTLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SUITE)
    return tmp_path


def test_help_lists_the_commands(folder: Path) -> None:
    shown = kdbench(folder, "--help").stdout
    for command in ("run", "check", "plan", "show", "board", "schema", "doctor"):
        assert command in shown


def test_run_writes_results_a_board_and_says_where(folder: Path) -> None:
    done = kdbench(folder, "run", "s.yaml")
    assert done.returncode == 0, done.stderr
    assert "4 jobs trained, 0 were done already." in done.stdout
    assert len(list((folder / "leaderboard" / "results" / "little").glob("*.json"))) == 4
    board = (folder / "leaderboard" / "little.md").read_bytes()
    assert (folder / "leaderboard" / "README.md").exists()
    again = kdbench(folder, "run", "s.yaml", "--json")
    assert again.returncode == 0
    found = json.loads(again.stdout)
    assert (found["trained"], found["reused"]) == (0, 4)
    assert (folder / "leaderboard" / "little.md").read_bytes() == board
    rendered = kdbench(folder, "board", "s.yaml")
    assert rendered.returncode == 0
    assert (folder / "leaderboard" / "little.md").read_bytes() == board


def test_a_suite_runs_from_another_folder(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = kdbench(elsewhere, "run", "../s.yaml", "--only", "p/none", "--seeds", "0", "--results", "mine")
    assert done.returncode == 0, done.stderr
    assert len(list((elsewhere / "mine" / "results" / "little").glob("*.json"))) == 1
    assert not (elsewhere / "leaderboard").exists()


def test_epochs_on_the_command_line_give_no_board(folder: Path) -> None:
    done = kdbench(folder, "run", "s.yaml", "--epochs", "1", "--only", "p/none")
    assert done.returncode == 0, done.stderr
    assert "Not comparable" in done.stdout
    assert not (folder / "leaderboard" / "little.md").exists()
    (one, *_) = (folder / "leaderboard" / "results" / "little").glob("*.json")
    assert json.loads(one.read_text())["comparable"] is False


def test_plan_and_dry_run_train_nothing(folder: Path) -> None:
    for command in (("plan", "s.yaml"), ("run", "s.yaml", "--dry-run")):
        done = kdbench(folder, *command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("pending") == 4
        assert "0 of 4 jobs are done" in done.stdout
    rows = json.loads(kdbench(folder, "plan", "s.yaml", "--json").stdout)
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]
    assert all(row["parameters"] > 0 and row["MACs"] > 0 and len(row["key"]) == 12 for row in rows)
    assert not (folder / "leaderboard").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "t.yaml"), "t.yaml"),
        (("check", "bad.yaml"), "bad.yaml:4:"),
        (("run", "s.yaml", "--only", "p/nnoe"), "did you mean 'p/none'"),
        (("run", "s.yaml", "--seeds", "a-b"), "--seeds a-b"),
        (("run", "s.yaml", "--device", "cuda:99"), "--device cuda:99"),
        (("run", "cifar.yaml", "--data-root", "nowhere"), "cifar-10-batches"),
        (("run", "model.yaml"), "widhts"),
        (("run", "s.yaml", "--epochs", "0"), "--epochs"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_the_users_mistakes_are_sentences_with_exit_code_2(folder: Path, arguments, sentence: str) -> None:
    (folder / "bad.yaml").write_text(SUITE.replace("epochs: 2", "epochs: two"))
    (folder / "cifar.yaml").write_text(SUITE.replace("{name: digits, fraction: 0.2}", "{name: cifar10}"))
    (folder / "model.yaml").write_text(SUITE.replace("{widths: [4, 8, 8]}", "{widhts: [4, 8, 8]}"))
    done = kdbench(folder, *arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "leaderboard").exists()


def test_a_failing_job_gives_exit_code_1_and_is_listed(folder: Path) -> None:
    (folder / "boom.py").write_text(
        "from dataclasses import dataclass\nfrom kdbench.method import Method\n\n@dataclass(frozen=True)\n"
        "class Boom(Method):\n    def loss(self, learner, teachers, batch, heads):\n        raise OSError('boom!')\n"
    )
    (folder / "b.yaml").write_text(SUITE.replace("  kd:", "  boom: {method: ./boom.py}"))
    done = kdbench(folder, "run", "b.yaml")
    assert done.returncode == 1
    assert "failed: p/boom seed 0: OSError: boom!" in done.stdout
    assert "Traceback" not in done.stderr
    assert "2" in (folder / "leaderboard" / "little.md").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict]]:
    """Steps and results of a run that nobody stops."""
    folder = stoppable(tmp_path_factory.mktemp("undisturbed"))
    done = kdbench(folder, "run", "long.yaml", "--json")
    assert done.returncode == 0, done.stderr
    return steps(folder), json.loads(done.stdout)["results"]


def stoppable(folder: Path) -> Path:
    (folder / "halting.py").write_text(METHOD)
    text = SUITE.replace("seeds: [0, 1]", "seeds: [0]").replace(
        "  none:\n  kd:\n", "  halting: {method: ./halting.py}\n"
    )
    (folder / "long.yaml").write_text(text.replace("epochs: 2,", "epochs: 3,"))
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_continues_and_ends_with_the_same_numbers(
    tmp_path: Path, undisturbed: tuple[int, list[dict]], number: signal.Signals
) -> None:
    folder = stoppable(tmp_path)
    code, errors = stop(folder, number, "run", "long.yaml")
    if number is signal.SIGINT:
        assert code == 130, errors
        assert "The same command continues" in errors
        assert "Traceback" not in errors
    else:
        assert code == -9
    assert not list((folder / "leaderboard").glob("results/little/*.json"))
    before = steps(folder) - (number is signal.SIGKILL)  # which did not end the last one; an interrupt waits for it
    done = kdbench(folder, "run", "long.yaml", "--json")
    assert done.returncode == 0, done.stderr
    whole, (result,) = undisturbed
    assert (before > 0, before + steps(folder)) == (True, whole)
    (found,) = json.loads(done.stdout)["results"]
    assert found["scores"] == result["scores"]


def test_show_and_doctor_answer(folder: Path) -> None:
    methods = json.loads(kdbench(folder, "show", "methods", "--json").stdout)
    assert {"none", "kd", "crd", "mixup"} <= {row["method"] for row in methods}
    assert any("temperature = 4.0" in row["knobs"] for row in methods)
    data = kdbench(folder, "show", "data", "--data-root", str(folder)).stdout
    assert "embedded" in data
    assert "missing" in data
    doctor = kdbench(folder, "doctor", "--data-root", str(folder))
    assert doctor.returncode == 0
    assert "torch" in doctor.stdout
    assert "cpu" in doctor.stdout

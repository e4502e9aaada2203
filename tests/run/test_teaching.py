"""Teachers alone, and teachers that travel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import kdbench
from training import LITTLE

from kdbench.errors import UserError
from kdbench.run import travel
from kdbench.train.lease import Lease

PAIRS = LITTLE.replace(
    "methods:",
    """
  q:
    teacher: {model: cnn, options: {widths: [8, 8, 8]}, train: {epochs: 3}, min_top1: 99.9}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
methods:""",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the one teacher of a suite in `runs`, and another training of it in `other`."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "s.yaml").write_text(LITTLE)
    for runs in ("runs", "other"):
        assert kdbench(folder, "run", "s.yaml", "--teachers-only", "--runs", runs).returncode == 0
    another(folder / "other")
    return folder


def another(runs: Path) -> None:
    """The teacher as another machine would have trained it: other bits under the same key."""
    from safetensors.torch import load, save

    from kdbench.files import parsed
    from kdbench.train.teachers import Record

    (folder,) = (runs / "teachers").iterdir()
    tensors = load((folder / "weights.safetensors").read_bytes())
    name = next(name for name in tensors if name.startswith("model.") and tensors[name].is_floating_point())
    tensors[name] += 1e-3
    payload = save(tensors)
    said = json.loads((folder / "record.json").read_text()) | {"sha256": "f" * 64}
    record = parsed(Record, json.dumps(said)).signed(payload)
    (folder / "weights.safetensors").write_bytes(payload)
    (folder / "record.json").write_text(json.dumps(said | {"digest": record.digest}))


def files(runs: Path) -> dict[str, bytes]:
    """Weights and records of all teachers; answers that students' trainings keep beside them are not theirs."""
    return {str(path.relative_to(runs)): path.read_bytes() for path in sorted((runs / "teachers").glob("*/*.*"))}


# alone ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", ["0", "2"])
def test_teachers_alone_are_made_once_and_gates_apply(tmp_path: Path, workers: str) -> None:
    (tmp_path / "s.yaml").write_text(PAIRS)
    done = kdbench(tmp_path, "run", "s.yaml", "--teachers-only", "--workers", workers, "--json")
    assert done.returncode == 1, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["pair"], row["role"], row["state"]) for row in rows] == [
        ("p", "teacher", "made"),
        ("q", "teacher", "below its gate"),
    ]
    assert "below its gate of 99.9% (pairs.q.teacher.min_top1)" in done.stderr
    assert not (tmp_path / "leaderboard").exists()
    assert not (tmp_path / "runs" / "students").exists()
    before = files(tmp_path / "runs")
    assert len(before) == 4
    done = kdbench(tmp_path, "run", "s.yaml", "--teachers-only", "--workers", workers, "--only", "p/*", "--json")
    assert [(row["pair"], row["state"]) for row in json.loads(done.stdout)] == [("p", "was here")]
    assert done.returncode == 0
    assert files(tmp_path / "runs") == before


def test_the_jobs_then_use_them_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE)
    assert kdbench(tmp_path, "run", "s.yaml", "--teachers-only", "--dry-run").stdout.split()[-2:] == ["cnn", "no"]
    assert kdbench(tmp_path, "run", "s.yaml", "--teachers-only").returncode == 0
    before = files(tmp_path / "runs")
    assert kdbench(tmp_path, "run", "s.yaml", "--only", "p/kd", "--seeds", "0").returncode == 0
    assert files(tmp_path / "runs") == before
    (weights,) = (tmp_path / "runs" / "teachers").glob("*/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    done = kdbench(tmp_path, "run", "s.yaml", "--teachers-only")
    assert (done.returncode, "damaged teacher" in done.stderr) == (0, True)
    assert {weights.name: weights.read_bytes()} == {weights.name: next(v for k, v in before.items() if "weights" in k)}


def test_a_teacher_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    bad = "import torch\nfrom torch import nn\n\ndef build(options, classes, channels, size):\n    return Bad()\n\n"
    bad += "class Bad(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    bad += "        self.layer = nn.Linear(64, 10)\n\n    def forward(self, x):\n"
    bad += "        if torch.is_grad_enabled():\n            raise RuntimeError('on purpose')\n"
    bad += "        return self.layer(x.flatten(1))\n"
    (tmp_path / "bad.py").write_text(bad)
    (tmp_path / "s.yaml").write_text(
        LITTLE.replace("{model: cnn, options: {widths: [8, 16, 16]}, train", '{model: "./bad.py:build", train')
    )
    done = kdbench(tmp_path, "run", "s.yaml", "--teachers-only")
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


# under way -----------------------------------------------------------------------------------------------------------
def test_teachers_travel_and_are_the_same_bytes(made: Path, tmp_path: Path) -> None:
    for source in ("runs", "runs/teachers"):
        done = kdbench(made, "merge", "--teachers", source, "--runs", str(tmp_path / "here"))
        assert done.returncode == 0, done.stderr
    assert done.stdout == "teachers: 0 new, 1 known, 0 left out\n"
    assert files(tmp_path / "here") == files(made / "runs")
    assert not list((tmp_path / "here" / "leases").iterdir())


def test_one_that_is_here_stays_where_another_comes(made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    travel.carry([made / "runs"], here)
    before = files(here)
    done = kdbench(made, "merge", "--teachers", "other", "--runs", str(here))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "(sha256 ffffffffffff) than the one here" in line
    assert line.endswith("which stays: students of the two are not comparable")
    assert files(here) == before


def test_a_damaged_one_is_left_out_there_and_replaced_here(made: Path, tmp_path: Path) -> None:
    here, spoilt = tmp_path / "here", tmp_path / "spoilt"
    for runs in (here, spoilt):
        travel.carry([made / "runs"], runs)
        (weights,) = (runs / "teachers").glob("*/weights.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    fresh = travel.carry([spoilt], tmp_path / "fresh")
    assert (fresh.new, len(fresh.damaged)) == (0, 1)
    assert not (tmp_path / "fresh" / "teachers").exists()
    assert travel.carry([made / "runs"], here).new == 1
    assert [path.name.partition(".")[2] for path in sorted((here / "teachers").iterdir())] == ["", "damaged"]


def test_one_that_is_being_trained_here_is_left_alone(made: Path, tmp_path: Path) -> None:
    (folder,) = (made / "runs" / "teachers").iterdir()
    with Lease.acquire(tmp_path / "leases" / folder.name):
        carried = travel.carry([made / "runs"], tmp_path)
    assert ["is being trained here" in sentence for sentence in carried.kept] == [True]
    assert not (tmp_path / "teachers").exists()


def test_a_kill_between_the_two_files_leaves_no_teacher(made: Path, tmp_path: Path, monkeypatch) -> None:
    written: list[Path] = []

    def killed(path: Path, payload: bytes) -> None:
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(travel, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        travel.carry([made / "runs"], tmp_path)
    assert [path.name for path in written] == ["weights.safetensors"]


def test_folders_without_teachers_and_merging_nothing_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no teachers"):
        travel.carry([tmp_path], tmp_path / "here")
    done = kdbench(tmp_path, "merge")
    assert (done.returncode, "expects other runs'" in done.stderr) == (2, True)


def test_merge_warns_of_results_that_a_second_teacher_has_taught(made: Path) -> None:
    done = kdbench(made, "run", "s.yaml", "--only", "p/kd", "--results", "one")
    assert done.returncode == 0, done.stderr
    assert kdbench(made, "merge", "one", "--results", "all").stderr == ""
    name = next((made / "all" / "results" / "little").glob("*.s1.*")).name
    said = json.loads((made / "all" / "results" / "little" / name).read_text())
    (made / "all" / "results" / "little" / name).unlink()
    (made / "two" / "results" / "little").mkdir(parents=True)
    (made / "two" / "results" / "little" / name).write_text(
        json.dumps(said | {"teacher": said["teacher"] | {"sha256": "f" * 64}})
    )
    done = kdbench(made, "merge", "two", "--results", "all")
    assert done.returncode == 1
    assert "little/p: 2 teachers that differ in their weights have taught its results" in done.stderr
    assert "ffffffffffff: 1" in done.stderr

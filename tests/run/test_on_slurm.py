"""Jobs of Slurm: options, and submitit's own executor for one machine, preemption included."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import kdbench
from training import LITTLE

from kdbench.errors import UserError
from kdbench.run import on_slurm
from kdbench.run.on_slurm import Requeued, Slurm, minutes, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("5:00", 5), ("5:01", 6), ("4:00:00", 240), ("0:30", 1), ("1-0", 1440), ("2-3:04", 3064)]
    + [("1-2:03:04", 1564)],
)
def test_times_of_slurm(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "4h", "1:2:3:4", "-5", "soon"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(UserError, match="expects minutes"):
        minutes(text)


def test_options_of_sbatch() -> None:
    text = 'partition=gpu,time=4:00:00,gres=gpu:1,exclusive,constraint="a,b",cpus-per-task=2'
    assert parse(text) == {
        "partition": "gpu",
        "time": "4:00:00",
        "gres": "gpu:1",
        "exclusive": "",
        "constraint": "a,b",
        "cpus_per_task": "2",
    }
    assert parse(None) == {}
    with pytest.raises(UserError, match="expects options of sbatch"):
        parse("=3")


def test_options_that_go_with_another_executor_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE)
    for arguments, sentence in (
        (("--slurm", "time=5"), "--slurm: goes with --executor slurm"),
        (("--ray-address", "auto", "--executor", "slurm"), "--ray-address: goes with --executor ray"),
        (("--gpus-per-job", "0.5"), "--gpus-per-job: goes with --executor ray"),
        (("--executor", "slurm", "--timeout", "5m"), "--timeout: goes with workers of this machine"),
    ):
        done = kdbench(tmp_path, "run", "s.yaml", *arguments)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "leaderboard" / "results").exists()


@pytest.mark.parametrize(("executor", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_library_is_told_with_the_extra_that_has_it(tmp_path: Path, monkeypatch, executor, library) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE)
    monkeypatch.setitem(sys.modules, library, None)
    done = kdbench(tmp_path, "run", "s.yaml", "--executor", executor)
    assert done.returncode == 2
    assert f"pip install 'kdbench[{executor}]'" in done.stderr.splitlines()[-1]


def test_where_there_is_no_slurm_and_no_time_it_is_told(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="expects how long"), Slurm(tmp_path, {"cluster": "local"}):
        pass
    with pytest.raises(UserError, match="expects slurm, or local"), Slurm(tmp_path, {"cluster": "x"}):
        pass
    monkeypatch.setattr(on_slurm.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="there is no Slurm here"), Slurm(tmp_path, {"time": "5"}):
        pass


def test_a_job_that_is_told_to_go_is_queued_again_after_its_step() -> None:
    """submitit's handler leaves the process; before it is called, the training has stopped in its own way."""
    order: list[str] = []

    def submitit(number: int, frame: object) -> None:
        order.append("queued again")
        raise SystemExit(-1)

    def call() -> list:
        try:
            signal.raise_signal(signal.SIGUSR2)
        except KeyboardInterrupt:
            order.append("state saved")
            raise
        return []

    before = signal.signal(signal.SIGUSR2, submitit)
    try:
        with pytest.raises(SystemExit):
            Requeued(call)()  # type: ignore[arg-type]
        assert order == ["state saved", "queued again"]
        assert signal.getsignal(signal.SIGUSR2) is submitit
        assert Requeued(lambda: [1])() == [1]  # type: ignore[arg-type, list-item, return-value]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.slow
def test_jobs_of_submitit_on_this_machine_give_what_a_run_here_gives(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "s.yaml").write_text(LITTLE)
    assert kdbench(tmp_path, "run", "s.yaml", "--results", "here", "--runs", "h").returncode == 0
    options = ("--executor", "slurm", "--slurm", "cluster=local,time=60", "--workers", "2")
    done = kdbench(tmp_path, "run", "s.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert "4 jobs trained" in done.stdout
    assert told(tmp_path / "leaderboard") == told(tmp_path / "here")
    assert "4 were done already" in kdbench(tmp_path, "run", "s.yaml", *options).stdout


def told(root: Path) -> dict[str, object]:
    """What must be the same wherever it was trained."""
    records = [json.loads(path.read_text()) for path in sorted((root / "results").rglob("*.json"))]
    return {r["key"]: (r["status"], r["scores"], r["curves"], r["teacher"]["sha256"]) for r in records}


@pytest.mark.slow
def test_slurm_itself(tmp_path: Path) -> None:
    """Where this machine can submit to Slurm: arrays, and a job that is requeued goes on."""
    pytest.importorskip("submitit")
    try:
        subprocess.run(["sinfo"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no Slurm here")
    (tmp_path / "s.yaml").write_text(LITTLE.replace("epochs: 2,", "epochs: 100,"))
    command = [sys.executable, "-m", "kdbench", "run", "s.yaml", "--only", "p/kd"]
    there = subprocess.Popen([*command, "--executor", "slurm", "--slurm", "time=60"], cwd=tmp_path)
    told_to_go = False
    while there.poll() is None:
        taught = list((tmp_path / "runs" / "teachers").glob("*/record.json"))
        if not told_to_go and taught and list((tmp_path / "runs" / "checkpoints").glob("[!.]*.pt")):
            listed = ["squeue", "--noheader", "--array", "--me", "--states=R", "--format=%i"]
            for number in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split():
                subprocess.run(["scancel", "--signal=USR2", number], check=True)
                told_to_go = True
        time.sleep(0.2)
    assert there.returncode == 0
    here = subprocess.run([*command, "--results", "here", "--runs", "h", "--workers", "0"], cwd=tmp_path, check=False)
    assert here.returncode == 0
    logs = [path.read_text() for path in (tmp_path / "runs" / "logs").glob("*.txt") if "p/kd" in path.read_text()]
    assert any(log.count(" on cpu") > 1 for log in logs)  # begun again
    assert {log.count(" epoch 1/") for log in logs} == {1}  # and continued
    assert told(tmp_path / "leaderboard") == told(tmp_path / "here")

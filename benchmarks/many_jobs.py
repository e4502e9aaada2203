"""Many jobs: what workers gain, what checkpoints and start-up cost, how long a large suite takes to expand.

    uv run python benchmarks/many_jobs.py [--rounds 3]

Prints ratios and times from this one run. Needs a free machine: beside other work, two workers on two cores gain
nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

# 20 jobs of some seconds each; crd takes several times as long as none
TWENTY = """
name: twenty
data: {name: digits}
recipe: {epochs: 60, batch_size: 64, optimizer: {lr: 0.05}, validate_every: 10}
pairs:
  p:
    teacher: {model: cnn, options: {widths: [32, 64, 128]}, train: {epochs: 2}}
    student: {model: cnn, options: {widths: [16, 32, 64]}}
methods: {none: , kd: , dist: , crd: {negatives: 128}}
seeds: [0, 1, 2, 3, 4]
"""

LARGE = """
name: large
data: {name: cifar100}
recipe: {epochs: 240, batch_size: 64, optimizer: {lr: 0.05}, schedule: {name: multistep, milestones: [150, 180, 210]}}
pairs:
"""


def workers(rounds: int) -> None:
    """Of the jobs alone (first start to last end), and of the whole command with its imports and its board."""
    jobs, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "s.yaml").write_text(TWENTY)
        _run(folder, "warm", 1, "--seeds", "0", "--only", "p/none")  # makes the teacher
        for number in range(rounds):
            (one_all, one), (two_all, two) = (_run(folder, f"{number}-{count}", count) for count in (1, 2))
            jobs.append(one / two)
            whole.append(one_all / two_all)
            print(f"  20 jobs: 1 worker {one:.0f} s of {one_all:.0f} s, 2 workers {two:.0f} s of {two_all:.0f} s")
    print(f"throughput of 2 workers over 1, jobs: {_spread(jobs)}; whole command: {_spread(whole)}")


def _run(folder: str, results: str, count: int, *more: str) -> tuple[float, float]:
    """Seconds of the command, and from its first job's start to its last job's end, by the seconds in its logs."""
    logs = Path(folder) / "runs" / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "kdbench", "run", "s.yaml", "--workers", str(count), "--results", results, *more]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    stamps = [
        datetime.fromisoformat(line[:19]) for path in logs.glob("*.txt") for line in path.read_text().splitlines()
    ]
    return seconds, (max(stamps) - min(stamps)).total_seconds()


def checkpoints(rounds: int) -> None:
    """An epoch's checkpoint of resnet20 with SGD against an epoch of 50,000 CIFAR images, scaled from some steps."""
    import torch

    from kdbench import models
    from kdbench.train import checkpoint
    from kdbench.train.state import State

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = models.build("resnet20", {}, classes=10, channels=3, size=32).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.randint(10, (128,))
        state, ratios = State(), []
        for number in range(rounds + 1):
            start = time.process_time()
            for _ in range(5):
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            epoch = (time.process_time() - start) / 5 * 50_000 / 128
            state.tensors = {"models": model.state_dict(), "heads": {}, "optimizers": optimizer.state_dict()}
            start = time.perf_counter()
            checkpoint.save(Path(folder) / "c.pt", state)
            saving = time.perf_counter() - start
            if number:  # the first warms up
                ratios.append(100 * saving / epoch)
        size = (Path(folder) / "c.pt").stat().st_size / 1e6
    print(f"a checkpoint of resnet20 ({size:.1f} MB), in percent of an epoch: {_spread(ratios)}")


def startup() -> None:
    """Wall time of a worker outside training: opening once, and then for each job."""
    from kdbench.run.opened import Setting

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text(TWENTY.replace("epochs: 60", "epochs: 1"))
        setting = Setting(path, None, Path(folder) / "board", Path(folder) / "runs")
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import kdbench.cli.session"], check=True)
        print(f"imports, once for each worker: {time.perf_counter() - start:.2f} s")
        start = time.perf_counter()
        opened = setting.open("cpu")
        print(f"opening the suite, once for each worker: {time.perf_counter() - start:.2f} s")
        from kdbench.run import runner

        for role in runner.first_roles(opened.jobs):
            opened.bench.teacher(role)
        extra = []
        for job in opened.jobs:
            start = time.perf_counter()
            result, _ = runner.do(job, opened.bench, opened.store)
            assert result.cost is not None
            extra.append(time.perf_counter() - start - result.cost.train_seconds)
    print(f"everything but training, for each job (models, scores, latency, files), s: {_spread(extra)}")


def expansion(rounds: int) -> None:
    """Loading, checking and expanding 50 pairs x 8 methods x 5 seeds."""
    from kdbench.suite.job import expand
    from kdbench.suite.load import load

    students = ("resnet8", "resnet20", "resnet32", "resnet44", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleNetV1")
    pairs = "".join(
        f"  p{n}:\n    teacher: {{model: resnet56, seed: {n // 8}}}\n    student: {students[n % 8]}\n"
        for n in range(50)
    )
    methods = "methods: {none: , kd: , dkd: , dist: , fitnet: , at: , sp: , rkd: }\nseeds: [0, 1, 2, 3, 4]\n"
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.yaml"
        path.write_text(LARGE + pairs + methods)
        for _ in range(rounds):
            start = time.perf_counter()
            jobs = expand(load(path), "0" * 16)
            keys = {job.key for job in jobs}
            seconds.append(time.perf_counter() - start)
    print(f"validation, expansion and keys of {len(jobs)} jobs ({len(keys)} keys), s: {_spread(seconds)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, n={len(values)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    expansion(rounds)
    checkpoints(rounds)
    startup()
    workers(rounds)

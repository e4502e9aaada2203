"""Many records: how long `board`, `status` and `plan` take over a store of thousands, and how that grows.

    uv run python benchmarks/many_records.py [--sizes 1000,10000]

Writes a suite of 201 cells (digits, 3 pairs, 67 labels of `kd`) and finished records of it, as many as asked, then
times each command in a process of its own: seconds of the processor, imports included. The numbers in the records are
made up; nothing is trained.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

CELLS = 3 * 67
SUITE = """
name: many
data: {{name: digits}}
recipe: {{epochs: 30, batch_size: 64, optimizer: {{lr: 0.05}}}}
pairs:
{pairs}
methods:
{methods}
seeds: {seeds}
"""
PAIR = """  p{number}:
    teacher: {{model: cnn, options: {{widths: [32, 64, 128]}}}}
    student: {{model: cnn, options: {{widths: [{width}, 8, 8]}}}}"""
LABEL = "  kd-{number}: {{method: kd, temperature: {temperature}}}"


def write_suite(folder: Path, seeds: int) -> Path:
    pairs = "\n".join(PAIR.format(number=number, width=4 + number) for number in range(3))
    labels = [LABEL.format(number=number, temperature=1 + number / 10) for number in range(65)]
    path = folder / "many.yaml"
    methods = "\n".join(["  none:", "  kd:", *labels])
    path.write_text(SUITE.format(pairs=pairs, methods=methods, seeds=list(range(seeds))))
    return path


def write_records(suite: Path, results: Path) -> int:
    """A finished record for every job of the suite."""
    from kdbench import data
    from kdbench.data import default_root
    from kdbench.result import Cost, Teacher
    from kdbench.run.store import filename
    from kdbench.suite.job import expand
    from kdbench.suite.load import load

    loaded = load(suite)
    fingerprint = data.load(loaded.file.data, default_root(), loaded.folder).fingerprint
    cost = Cost(10.0, 30.0, 9e3, 300.0, 1500, 0, 1000, 40_000, 20_000, 800_000, 0.1, 5.0, 30)
    draw, folder, count = random.Random(0), results / "results" / "many", 0
    folder.mkdir(parents=True)
    for job in expand(loaded, fingerprint):
        top1 = 80 + job.seed % 7 + draw.random()
        curves = {name: [draw.random() for _ in range(30)] for name in ("train/loss", "train/kd", "train/top1")}
        split = {"top1": top1, "nll": 0.5, "ece": 0.02, "brier": 0.3, "agreement": 0.9, "kl": 0.1}
        result = job.result(
            "ok",
            scores={f"{name}/{metric}": value for name in ("val", "test") for metric, value in split.items()},
            curves=curves,
            cost=cost,
            teacher=Teacher("t" * 12, "ab" * 32, {"val/top1": 95.0, "test/top1": 95.0}),
            provenance={"device": "cpu", "device_name": "none", "precision": "fp32", "versions": {"torch": "2"}},
        )
        (folder / filename(result)).write_text(result.to_json())
        count += 1
    return count


def seconds(folder: Path, *arguments: str) -> float:
    start = _spent()
    command = [sys.executable, "-m", "kdbench", *arguments, "--results", "board"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return _spent() - start


def _spent() -> float:
    """Processor seconds of all child processes so far: other work on the machine hardly lengthens those."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000", help="records, about; a multiple of the cells is written")
    parser.add_argument("--commands", default="status,plan,board")
    options = parser.parse_args()
    commands = options.commands.split(",")
    print(f"| records | {' | '.join(f'{name} (s)' for name in commands)} |")
    print("|---:|" + "---:|" * len(commands), flush=True)
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            suite = write_suite(folder, max(1, round(size / CELLS)))
            count = write_records(suite, folder / "board")
            times = [seconds(folder, command, suite.name) for command in commands]
            print(f"| {count:,} | {' | '.join(f'{time:.1f}' for time in times)} |", flush=True)


if __name__ == "__main__":
    main()

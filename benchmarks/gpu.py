"""What a first machine with a GPU runs: everything that only it can show, in about eight minutes.

    uv run --with torchdistill python benchmarks/gpu.py OUT [--minutes 8] [--only tests,engine] [--device cpu]

Each part is a process with a share of the time and a log of its own below OUT; a part that fails or runs out of its
share ends alone. `OUT/summary.md` has a line a part. Nothing of the repository is written: results of the suites are in
OUT/leaderboard, to be looked at and copied.

tests    the tests marked `gpu`
engine   our loop against a bare one, in bf16
peers    our loop against torchdistill's
packing  one, two, four, eight jobs at a time on one device: jobs per minute
scan     the scan's backends, mamba_ssm's kernels where they are compiled
compile  the same suite with and without torch.compile
suites   CIFAR-10 suites whose results are published (needs KDBENCH_DATA with CIFAR-10)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

HERE = Path(__file__).parent
ROOT = HERE.parent
SMALL = """
name: {name}
data: {{name: digits}}
recipe: {{epochs: 10, batch_size: 64, optimizer: {{lr: 0.1}}, validate_every: 10, compile: {compiled}}}
pairs:
  p:
    teacher: {{model: cnn, options: {{widths: [32, 64, 128]}}, train: {{epochs: 5}}}}
    student: {{model: cnn, options: {{widths: [16, 32, 64]}}}}
methods: {{none: , kd: , dist: , dkd: }}
seeds: [0, 1, 2, 3]
"""


@dataclass(frozen=True)
class Part:
    name: str
    share: float  # of the time
    commands: Callable[[Path], list[list[str]]]


def script(name: str, *options: str) -> list[str]:
    return [sys.executable, str(HERE / f"{name}.py"), *options]


def suite(out: Path, name: str, *options: str, compiled: str) -> list[str]:
    """A run of 16 small jobs, in folders of its own, so that nothing is found there."""
    own = out / name
    own.mkdir(exist_ok=True)
    path = own / f"{name}.yaml"
    path.write_text(SMALL.format(name=name, compiled=compiled))
    return run(own, str(path), *options)


def run(out: Path, suite: str, *options: str) -> list[str]:
    folders = ["--results", str(out / "leaderboard"), "--runs", str(out / "runs")]
    return [sys.executable, "-m", "kdbench", "run", suite, *folders, *options]


def parts(device: str) -> tuple[Part, ...]:
    def on(name: str, *options: str) -> list[str]:
        return script(name, "--device", device, *options)

    def small(out: Path, name: str, *options: str, compiled: str = "false") -> list[str]:
        return suite(out, name, "--device", device, *options, compiled=compiled)

    published = [str(ROOT / "suites" / f"{name}.yaml") for name in ("cifar10-short", "cifar10-opdf-short")]
    return (
        Part("tests", 0.2, lambda out: [[sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "0"]]),
        Part("engine", 0.1, lambda out: [on("engine_speed", "--steps", "200")]),
        Part("peers", 0.12, lambda out: [on("peers", "--steps", "60", "--rounds", "3", "--workers", "8")]),
        Part("packing", 0.15, lambda out: [small(out, f"packed-{n}", "--workers", str(n)) for n in (1, 2, 4, 8)]),
        Part("scan", 0.08, lambda out: [on("scan_speed")]),
        Part("compile", 0.1, lambda out: [small(out, f"compile-{said}", compiled=said) for said in ("false", "true")]),
        Part("suites", 0.25, lambda out: [run(out, path, "--device", device) for path in published]),
    )


def do(part: Part, out: Path, minutes: float) -> dict[str, object]:
    """One part: its verdict and how long each of its commands took."""
    end, times, verdict = time.monotonic() + part.share * minutes * 60, [], "ok"
    with (out / f"{part.name}.log").open("w") as log:
        for command in part.commands(out):
            start = time.monotonic()
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            try:
                left = max(1.0, end - start)
                done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, timeout=left)
                verdict = verdict if done.returncode == 0 else f"exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                verdict = "out of time"
            times.append(f"{time.monotonic() - start:.0f} s")
            if verdict == "out of time":
                break
    return {"part": part.name, "verdict": verdict, "commands took": ", ".join(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", default="", help="parts, with commas between; default: all")
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself")
    options = parser.parse_args()
    every = parts(options.device)
    chosen = options.only.split(",") if options.only else [part.name for part in every]
    unknown = set(chosen) - {part.name for part in every}
    if unknown:
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    for part in every:
        if part.name in chosen:
            rows.append(do(part, options.out.resolve(), options.minutes))
            (options.out / "summary.md").write_text(tabulate(rows, headers="keys", tablefmt="github") + "\n")
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()

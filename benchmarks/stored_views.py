"""Teachers' stored answers on crops and flips, with and without: a step of KD, and whole suites.

    uv run python benchmarks/stored_views.py steps  [--rounds 5] [--steps 12]
    uv run python benchmarks/stored_views.py suites [--rounds 3] [--data-root DIR] [--only digits]

`steps`: CIFAR-shaped random images, crop and flip, batch 128, one thread. Processor seconds of the second of two
epochs of `--steps` steps, with a validation of 64 images: without a teacher (none), with one that runs (live), with one
whose answers are there (found), and while they are made (filling). The four take turns; a ratio is the median over the
rounds of each round's own. Students must have equal bits. `counted` is what a training with stored answers is recorded
to cost, over what the one with a live teacher is: 1 where nobody looks cheaper.

`suites`: `kdbench run` on a whole suite in a folder of its own, its teacher made beforehand, with --cache-gb 0 and with
the default, in turns; processor seconds of the whole command with imports, scores and files. Records must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

SUITES = {
    # nine views; the smallest nets, where a step is mostly overhead
    "digits": """
name: digits-stored
data: {name: digits, val: 180}
recipe: {epochs: 30, batch_size: 64, clip_norm: 2, optimizer: {lr: 0.1}, augment: {crop: 1}, validate_every: 30}
pairs:
  p:
    teacher: {model: cnn, options: {widths: [32, 64, 128]}, train: {epochs: 2}}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
methods: {none: , kd: , dkd: , dist: , ls: , nkd: , ctkd: , wsld: }
seeds: [0, 1, 2]
""",
    # 162 views of a twentieth of CIFAR-10
    "cifar10": """
name: cifar10-stored
data: {name: cifar10, fraction: 0.05, val: 500}
recipe: {epochs: 6, batch_size: 128, optimizer: {lr: 0.1}, augment: {crop: 4, flip: true}, validate_every: 6}
pairs:
  p:
    teacher: {model: resnet56, train: {epochs: 1}}
    student: {model: resnet20}
methods: {none: , kd: , dkd: , dist: , ls: , nkd: }
seeds: [0, 1]
""",
}
PAIRS = (("resnet56", "resnet20"), ("resnet20", "resnet8"))
BATCH = 128


# steps ---------------------------------------------------------------------------------------------------------------
def steps(rounds: int, count: int) -> None:
    import torch

    torch.set_num_threads(1)
    for teacher, student in PAIRS:
        seconds: dict[str, list[float]] = {}
        counted: list[float] = []
        for number in range(rounds + 1):
            with tempfile.TemporaryDirectory() as folder:
                found = {
                    kind: _trained(kind, teacher, student, count, Path(folder))
                    for kind in ("none", "live", "filling", "found")
                }
            weights = {kind: state for kind, (_, _, state) in found.items() if kind != "none"}
            for name, value in weights["live"].items():
                assert all(torch.equal(value, other[name]) for other in weights.values()), name
            if number:  # the first warms up
                for kind, (cpu, _, _) in found.items():
                    seconds.setdefault(kind, []).append(cpu / count)
                counted.append(found["found"][1] / found["live"][1])
        said = ", ".join(f"{kind} {1000 * statistics.median(times):.0f} ms" for kind, times in seconds.items())
        print(f"{teacher} -> {student}: a step: {said}")
        for kind in ("found", "filling", "none"):
            ratios = [live / other for live, other in zip(seconds["live"], seconds[kind], strict=True)]
            print(f"  live / {kind}: {_spread(ratios)}")
        print(f"  counted: {_spread(counted)}", flush=True)


def _trained(kind: str, teacher: str, student: str, count: int, folder: Path):
    """Processor seconds of the second epoch, what the record would say of both, and the student's weights."""
    import torch
    from engine_speed import data, network

    from kdbench.methods.kd import KD
    from kdbench.methods.none import NoTeacher
    from kdbench.suite.fields import Augment, Recipe
    from kdbench.train.engine import Engine
    from kdbench.train.state import Training
    from kdbench.train.table import Shelf

    device = torch.device("cpu")
    method = NoTeacher() if kind == "none" else KD()
    plan = method.plan(("teacher", "student"))
    roles = {role: network(teacher if role == "teacher" else student, device) for role in plan.roles}
    recipe = Recipe(epochs=2, batch_size=BATCH, augment=Augment(crop=4, flip=True))
    work = Training(method, plan, roles, data(device, count), recipe, 0)
    if kind in ("filling", "found"):
        (folder / "t").mkdir(exist_ok=True)
        work = replace(work, shelves={"teacher": Shelf(folder / "t", {}, 10**9)})
    at: list[float] = []
    trained = Engine(work, watch=lambda progress: at.append(time.process_time())).train()
    return at[1] - at[0], trained.cpu_seconds, trained.answer.state_dict()


# suites --------------------------------------------------------------------------------------------------------------
def suites(rounds: int, data_root: str | None, only: str | None) -> None:
    for name, text in SUITES.items():
        if only in (None, name):
            _suite(name, text, rounds, ["--data-root", data_root] if data_root else [])


def _suite(name: str, text: str, rounds: int, where: list[str]) -> None:
    ratios, costs = [], []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "s.yaml").write_text(text)
        _run(folder, "warm", *where, "--only", "p/none", "--seeds", "0")  # makes the teacher
        for number in range(rounds):
            seconds, records = {}, {}
            for kind, room in (("live", "0"), ("stored", "4")):
                for views in (folder / "runs" / "teachers").glob("*/views"):
                    shutil.rmtree(views)
                seconds[kind] = _run(folder, f"{number}{kind}", *where, "--cache-gb", room)
                records[kind] = _records(folder / f"{number}{kind}")
            for key, live in records["live"].items():
                assert all(live[part] == records["stored"][key][part] for part in ("scores", "curves", "job")), key
            ratios.append(seconds["live"] / seconds["stored"])
            own = [
                records["stored"][key]["cost"]["cpu_seconds"] / live["cost"]["cpu_seconds"]
                for key, live in records["live"].items()
                if live["method"] != "none"
            ]
            costs.append(statistics.median(own))
            print(f"  {name}: live {seconds['live']:.0f} s, stored {seconds['stored']:.0f} s", flush=True)
    print(f"{name}, {len(records['live'])} jobs: live / stored {_spread(ratios)}; counted {_spread(costs)}", flush=True)


def _run(folder: Path, results: str, *more: str) -> float:
    """Processor seconds of a command and its workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "kdbench", "run", "s.yaml", "--workers", "0", "--results", results, *more]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _records(folder: Path) -> dict[str, dict]:
    return {record["key"]: record for record in (json.loads(p.read_text()) for p in folder.rglob("results/*/*.json"))}


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}, n={len(values)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "suites"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--data-root")
    parser.add_argument("--only", choices=list(SUITES))
    options = parser.parse_args()
    if options.what == "steps":
        steps(options.rounds, options.steps)
    else:
        suites(options.rounds, options.data_root, options.only)

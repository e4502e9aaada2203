"""What each method costs beside `kd`: seconds of a training step, of the same student and teacher on the same data.

    uv run python benchmarks/methods_speed.py                          # every method, a small network on the CPU
    uv run python benchmarks/methods_speed.py --only kd dkd crd --steps 5 --rounds 2
    uv run python benchmarks/methods_speed.py --device cuda --student resnet20 --teacher resnet56 --steps 200

All methods take turns, a few times, in another order each time; each ratio is the median over the rounds of method / kd
in the same round, so that a drift of the machine's speed cancels. A turn is a whole training of one epoch with heads,
surveys, choices and every stage, less its validation of a few images; methods that train several networks show what
that costs. The table is written to benchmarks/methods_speed.md.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from kdbench import models, plugins
from kdbench.board.text import grid
from kdbench.data import DataSet
from kdbench.data.batches import Images
from kdbench.data.signature import Signature
from kdbench.method import Method, Refusal
from kdbench.suite.fields import Recipe
from kdbench.tasks.classification import Classification
from kdbench.train.engine import Engine
from kdbench.train.state import Training

TABLE = Path(__file__).with_suffix(".md")
SMALL = {"cnn": {"widths": [8, 16, 32]}}  # options of models that need some
FEW = {"active_mixup": {"images": 64, "pairs": 64, "candidates": 64, "rounds": 1}}  # knobs whose defaults are large


def data(device: torch.device, images: int) -> DataSet:
    """Random uint8 images in CIFAR's shape."""
    rng = torch.Generator().manual_seed(0)

    def split(n: int) -> Images:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng)
        labels = torch.randint(0, 10, (n,), generator=rng)
        return Images(pixels, labels, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)).move(device)

    train, val, test = split(images), split(16), split(16)
    return DataSet("random", Classification(10), Signature.of((3, 32, 32)), train, val, test, "", "")


def network(name: str, device: torch.device) -> nn.Module:
    return models.build(name, SMALL.get(name, {}), classes=10, channels=3, size=32).to(device)


def training(method: Method, loaded: DataSet, options: argparse.Namespace) -> Training:
    """With a network of the teacher's kind for whoever is frozen or copies it; every other role is a student."""
    device = loaded.train.device
    roles = ("teacher", "student", "ta", "teacher2")
    plan = method.plan(roles)
    nets = {}
    for role in plan.roles:
        teaches = role.startswith("teacher") or plan.copies.get(role) == "teacher"
        nets[role] = network(options.teacher if teaches else options.student, device)
    for role in plan.started:
        nets[role] = copy.deepcopy(nets.get(plan.copies[role], nets[role]))
    for role in plan.frozen:
        nets[role].eval().requires_grad_(False)
    recipe = Recipe.model_validate(
        {"epochs": 1, "batch_size": options.batch, "optimizer": {"lr": 0.01}, "augment": {"crop": 4, "flip": True}}
    )
    return Training(method, plan, nets, loaded, recipe, 0)


def seconds(name: str, loaded: DataSet, options: argparse.Namespace) -> float:
    """Of one epoch with that method. Raises Refusal where it does not fit these networks."""
    method = plugins.method_class(name, Path())(**FEW.get(name, {}))
    task = training(method, loaded, options)
    if loaded.train.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    Engine(task).train()
    return time.perf_counter() - start


def measured(names: list[str], loaded: DataSet, options: argparse.Namespace) -> tuple[dict[str, list[float]], dict]:
    """Seconds by method, one for each round, and why some have none."""
    times: dict[str, list[float]] = {name: [] for name in names}
    refused: dict[str, str] = {}
    for number in range(-1, options.rounds):  # the first round warms up
        order = random.Random(number).sample(names, len(names))
        for name in order:
            if name in refused:
                continue
            try:
                taken = seconds(name, loaded, options)
            except Refusal as refusal:
                refused[name] = str(refusal)
                continue
            if number >= 0:
                times[name].append(taken)
        print(f"round {number + 1} of {options.rounds} is done", flush=True)
    return times, refused


def table(times: dict[str, list[float]], refused: dict[str, str], options: argparse.Namespace) -> str:
    lines = []
    for name, taken in times.items():
        if name in refused:
            continue
        ratios = [one / kd for one, kd in zip(taken, times["kd"], strict=True)]
        step = 1000 * statistics.median(taken) / options.steps
        lines.append((statistics.median(ratios), [f"`{name}`", f"{statistics.median(ratios):.2f}",
                      f"{min(ratios):.2f} to {max(ratios):.2f}", f"{step:.1f}"]))  # fmt: skip
    body = grid(["method", "time / kd", "over rounds", "ms / step"], [line for _, line in sorted(lines)], "lrrr")
    about = (
        f"Generated by `benchmarks/methods_speed.py` on {platform.machine()} ({options.device}), torch "
        f"{torch.__version__}: {options.student} from {options.teacher}, {options.steps} steps of {options.batch} "
        f"random images, {options.rounds} rounds in turns. A step is one of the recipe's epoch: stages, copies, "
        "surveys and choices before it are spread over these steps, so few steps make one-off work look large."
    )
    kept = ", ".join(f"`{name}` {FEW[name]}" for name in times if name in FEW)
    parts = ["# Overhead of methods", about, body, f"Knobs that differ from defaults: {kept}." if kept else ""]
    parts += ["Refused:\n\n" + "\n".join(f"- `{n}`: {why}" for n, why in refused.items()) if refused else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="these methods, and kd")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--student", default="cnn")
    parser.add_argument("--teacher", default="cnn")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    names = sorted({"kd", *(options.only or plugins.builtin_methods())})
    loaded = data(torch.device(options.device), options.steps * options.batch)
    text = table(*measured(names, loaded, options), options)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

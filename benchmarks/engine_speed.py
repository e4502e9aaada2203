"""The engine against a bare hand-written loop: same data on the device, same model, batch, precision and layout.

    uv run python benchmarks/engine_speed.py                 # resnet20, batch 128, CPU
    uv run python benchmarks/engine_speed.py --device cuda --steps 200

The loops take turns, a few times; each ratio is the median over the rounds of engine / bare images per second, so
that a drift of the machine's speed cancels. Peak memory is each loop's own process's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from kdbench import models
from kdbench.data import DataSet
from kdbench.data.augment import pixels
from kdbench.data.batches import Images
from kdbench.data.signature import Signature
from kdbench.methods.kd import KD
from kdbench.methods.none import NoTeacher
from kdbench.suite.fields import Augment, Recipe
from kdbench.tasks.classification import Classification
from kdbench.train import memory
from kdbench.train.engine import Engine
from kdbench.train.recipe import autocast, precision_on
from kdbench.train.state import Training

BATCH = 128
PAIR = ("resnet20", "resnet20")


def data(device: torch.device, steps: int) -> DataSet:
    """Random uint8 images in CIFAR's shape; an epoch as long as asked."""
    return random_images(device, steps * BATCH, 64)


def random_images(device: torch.device, images: int, held_out: int) -> DataSet:
    """So many random uint8 images in CIFAR's shape to train on, and for validation and test each."""
    rng = torch.Generator().manual_seed(0)

    def split(n: int) -> Images:
        pixels_N = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng)
        labels_N = torch.randint(0, 10, (n,), generator=rng)
        return Images(pixels_N, labels_N, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)).move(device)

    train, val, test = split(images), split(held_out), split(held_out)
    return DataSet("random", Classification(10), Signature.of((3, 32, 32)), train, val, test, "", "")


def bare(
    kind: str, device: torch.device, loaded: DataSet, steps: int, pair: tuple[str, str] = PAIR, precision: str = "auto"
) -> float:
    """Seconds of `steps` optimiser steps as one would write them by hand, with crop and flip."""
    precision = precision_on(precision, device)
    student, teacher = network(pair[1], device), network(pair[0], device).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, labels = loaded.train.images, loaded.train.labels
    start = time.perf_counter()
    order = torch.randperm(len(labels), device=device)
    total = torch.zeros((), device=device)
    student.train()
    for step in range(steps):
        index = order[step * BATCH : (step + 1) * BATCH]
        x = pixels(
            images, index, augment=Augment(crop=4, flip=True), seed=0, epoch=0, mean=loaded.mean, std=loaded.std
        ).contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            z = student(x)
            loss = F.cross_entropy(z, labels[index])
            if kind == "kd":
                with torch.no_grad():
                    z_t = teacher(x)
                soft = F.kl_div(
                    F.log_softmax(z / 4, 1), F.log_softmax(z_t / 4, 1), reduction="batchmean", log_target=True
                )
                loss = 0.1 * loss + 0.9 * 16 * soft
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
    total.item()
    return time.perf_counter() - start


def network(name: str, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(name, {}, classes=10, channels=3, size=32).to(device, memory_format=torch.channels_last)


def engine(
    kind: str, device: torch.device, loaded: DataSet, steps: int, pair: tuple[str, str] = PAIR, precision: str = "auto"
) -> float:
    """Seconds of the engine's training steps, order and augmentation included."""
    method = KD() if kind == "kd" else NoTeacher()
    plan = method.plan(("teacher", "student"))
    roles = {role: network(name, device) for role, name in zip(("teacher", "student"), pair, strict=True)}
    roles = {role: model for role, model in roles.items() if role in plan.roles}
    recipe = Recipe(epochs=1, batch_size=BATCH, augment=Augment(crop=4, flip=True), precision=precision)
    return Engine(Training(method, plan, roles, loaded, recipe, 0)).train().seconds


LOOPS = {"bare": bare, "engine": engine}


def measure(name: str, kind: str, device: torch.device, steps: int) -> float:
    """Peak MiB of one loop in this process."""
    loaded = data(device, steps)
    memory.reset_peak(device)
    LOOPS[name](kind, device, loaded, steps)
    return memory.peak_mb(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory:
        print(json.dumps(measure(*options.memory, device, options.steps)))
        return
    loaded = data(device, options.steps)
    for kind in ("none", "kd"):
        for loop in LOOPS.values():
            loop(kind, device, data(device, 3), 3)  # warm up
        seconds = {name: [] for name in LOOPS}
        for _ in range(options.rounds):
            for name, loop in LOOPS.items():
                seconds[name].append(loop(kind, device, loaded, options.steps))
        ratios = [b / e for b, e in zip(seconds["bare"], seconds["engine"], strict=True)]
        speed = {name: options.steps * BATCH / statistics.median(times) for name, times in seconds.items()}
        peak = {
            name: json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--device", options.device, "--steps", str(options.steps)]
                    + ["--memory", name, kind],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for name in LOOPS
        }
        print(
            f"{kind:5} engine {speed['engine']:.0f} images/s, bare {speed['bare']:.0f}; "
            f"ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f}, "
            f"n={options.rounds}); peak memory ratio {peak['engine'] / peak['bare']:.3f} "
            f"({peak['engine']:.0f} / {peak['bare']:.0f} MiB)"
        )


if __name__ == "__main__":
    main()

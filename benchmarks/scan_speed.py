"""The scan's backends against mamba_ssm's own reference, forward and backward: ratios of time and of peak memory.

    uv sync --extra mamba && uv run python benchmarks/scan_speed.py
    uv run python benchmarks/scan_speed.py --batch 128 --channels 256 --length 196 --skip-reference
    uv run python benchmarks/scan_speed.py --device cuda   # mamba_ssm's kernels, where they are compiled

The contenders take turns, a few rounds in one process; each ratio is the median over the rounds, so that a drift of
the machine's speed cancels. Times are CPU seconds of one thread (see `--threads`), which other work on the machine
disturbs less than elapsed time. Peak memory is the growth of the resident set over the inputs, each in a process of
its own. `--allocator` measures what `kdbench.train.memory.keep_pages` is worth, on one step of a whole model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from kdbench import models
from kdbench.models.mamba import scan
from kdbench.train import memory

CPU = torch.device("cpu")
HOW = ("returned", "kept")  # what becomes of freed pages


def inputs(batch: int, channels: int, length: int, states: int, device: torch.device = CPU) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias as a freshly initialised block gives them."""
    torch.manual_seed(0)
    u, delta, z = (torch.randn(batch, channels, length) for _ in range(3))
    B, C = (torch.randn(batch, states, length) for _ in range(2))
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    made = [u, delta * 0.1, A, B, C, torch.ones(channels), z, torch.full((channels,), -4.0)]
    return [x.to(device).requires_grad_() for x in made]


def contender(name: str) -> Callable[..., Tensor]:
    if name != "reference":
        return lambda *tensors: scan.selective_scan(*tensors, backend=name)
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "stubs"))
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    return lambda *tensors: selective_scan_ref(*tensors, delta_softplus=True)


def once(run: Callable[..., Tensor], tensors: list[Tensor]) -> float:
    for x in tensors:
        x.grad = None
    if tensors[0].device.type == "cpu":
        start = time.process_time()
        run(*tensors).sum().backward()
        return time.process_time() - start
    begin, end = torch.Event(tensors[0].device, enable_timing=True), torch.Event(tensors[0].device, enable_timing=True)
    begin.record()
    run(*tensors).sum().backward()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak(name: str, shape: tuple[int, ...], device: torch.device) -> float:
    """MiB that one forward and backward pass needs on top of its inputs and the imported libraries."""
    run = contender(name)
    once(run, inputs(1, 4, 2, shape[3], device))  # what is loaded on first use
    tensors = inputs(*shape, device)
    memory.reset_peak(device)
    before = memory.peak_mb(device)
    once(run, tensors)
    return memory.peak_mb(device) - before


def in_a_process(*arguments: str) -> float:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def step_seconds(keep: bool, backend: str, steps: int = 6) -> float:
    """Median seconds of a training step of an 8-block Mamba of width 64 on 128 images of 28x28, with 4x4 patches."""
    if keep:
        memory.keep_pages()
    torch.manual_seed(0)
    model = models.build("mamba", {"backend": backend}, classes=10, channels=1, size=28)
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    seconds = []
    for _ in range(steps):
        start = time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"batch": 128, "channels": 128, "length": 64, "states": 16, "rounds": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-reference", action="store_true", help="it is slow, and quadratic in the length")
    parser.add_argument("--allocator", action="store_true")
    parser.add_argument("--backend", default="auto", help="of the whole model")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=HOW, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape, device = (given.batch, given.channels, given.length, given.states), torch.device(given.device)
    if given.peak:
        print(json.dumps(peak(given.peak, shape, device)))
    elif given.step:
        print(json.dumps(step_seconds(given.step == "kept", given.backend)))
    elif given.allocator:
        steps = [[in_a_process("--backend", given.backend, "--step", how) for how in HOW] for _ in range(given.rounds)]
        ratios = [returned / kept for returned, kept in steps]
        print(
            f"training step with pages kept: {statistics.median(ratios):.2f}x faster "
            f"(min {min(ratios):.2f}, max {max(ratios):.2f}, n={len(ratios)})"
        )
    else:
        compare(shape, given.rounds, given.skip_reference, device)


def compare(shape: tuple[int, ...], rounds: int, skip_reference: bool, device: torch.device) -> None:
    ours = {"native": scan.scan_native.problem} if device.type == "cpu" else {"mamba_ssm": scan.kernels_problem}
    for name, problem in ours.items():
        if problem():
            print(f"{name} is not measured: {problem()}")
    names = [*([] if skip_reference else ["reference"]), "torch", *(n for n, problem in ours.items() if not problem())]
    print(f"batch, channels, length, states: {shape}; threads: {torch.get_num_threads()}; n={rounds}")
    runs = {name: contender(name) for name in names}
    tensors = inputs(*shape, device)
    for name in names[not skip_reference :]:
        once(runs[name], tensors)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append(once(runs[name], tensors))
    sizes = [f"--{key}={value}" for key, value in zip(("batch", "channels", "length", "states"), shape, strict=True)]
    sizes.append(f"--device={device}")
    peaks = {name: in_a_process("--peak", name, *sizes) for name in names}
    for name in names:
        print(f"{name:10} {1000 * statistics.median(seconds[name]):8.1f} ms   peak {peaks[name]:6.0f} MiB")
    for slow, fast in pairwise(names):
        ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
        print(
            f"{fast} is {statistics.median(ratios):.1f}x faster than {slow} (min {min(ratios):.1f}, "
            f"max {max(ratios):.1f}), at {peaks[fast] / peaks[slow]:.2f} of its peak memory"
        )


if __name__ == "__main__":
    main()

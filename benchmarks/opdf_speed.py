"""OPDF's costs: a step of an over-parameterised student against the plain one, the deployed student, decomposition.

    uv run python benchmarks/opdf_speed.py                       # ViT 192 wide, 6 blocks, 32x32, batch 128, CPU
    uv run python benchmarks/opdf_speed.py --device cuda --steps 50
    uv run python benchmarks/opdf_speed.py --only decompose      # 36 matrices of a 6-layer BERT

A step is forward, backward and AdamW of the student alone on fixed pixels; `+align` adds the alignment with a teacher
twice as deep. The contestants take turns within a round and each ratio is the median over the rounds, so that a drift
of the machine's speed cancels. Targets: step 1.35, deployed 1.00, decomposition 20 s on two cores.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import models
from kdbench.batch import Profile
from kdbench.methods import _mpo as mpo
from kdbench.methods._mpo_shapes import automatic
from kdbench.methods.none import NoTeacher
from kdbench.methods.opdf import OPDF, alignment_loss
from kdbench.train.recipe import autocast, precision_on

BATCH = 128
CLOCK = time.perf_counter  # process_time with --busy


def vit(depth: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    options = {"patch_size": 4, "depth": depth}
    return models.build("vit_tiny_patch16_224", options, classes=10, channels=3, size=32).to(device)


def step(model: nn.Module, heads: nn.Module | None, weight: float) -> Callable[[Tensor, Tensor], None]:
    """One optimiser step of a model, with the alignment where there are heads."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    device = next(model.parameters()).device
    precision = precision_on("auto", device)

    def run(x: Tensor, labels: Tensor) -> None:
        with autocast(precision, device):
            loss = F.cross_entropy(model(x), labels)
            if heads is not None:
                loss = loss + weight * alignment_loss(*heads.__dict__["compared"]())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = CLOCK()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (CLOCK() - start) / repeats


def report(what: str, times: dict[str, list[float]]) -> None:
    base = times["plain"]
    for name, taken in times.items():
        ratios = [one / other for one, other in zip(taken, base, strict=True)]
        print(
            f"{what} {name:9} {1000 * statistics.median(taken):8.1f} ms; ratio {statistics.median(ratios):.3f} "
            f"(min {min(ratios):.3f}, max {max(ratios):.3f}, n={len(ratios)})"
        )


def turns(calls: dict[str, Callable[[], object]], rounds: int, steps: int, device: torch.device) -> dict:
    for call in calls.values():
        seconds(call, 2, device)  # warm up
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for name in names:
            times[name].append(seconds(calls[name], steps, device))
    return times


def training(device: torch.device, rounds: int, steps: int, scale: int) -> None:
    x = torch.randn(BATCH, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (BATCH,), device=device)
    plain, teacher = vit(6, device), vit(12, device)
    method = OPDF(scale=scale, over=NoTeacher())
    wide = [method.prepare(copy.deepcopy(plain), "student", {}) for _ in range(2)]
    heads = method.heads(Profile("student", wide[1], 10, {}, 0), {"teacher": Profile("teacher", teacher, 10, {}, 0)})
    size = [sum(p.numel() for p in model.parameters()) for model in (plain, wide[0])]
    print(f"parameters {size[0] / 1e6:.2f} M, over-parameterised with L = {scale} {size[1] / 1e6:.2f} M")
    runs = {
        "plain": step(plain, None, 0.0),
        f"L={scale}": step(wide[0], None, 0.0),
        "+align": step(wide[1], heads, method.weight),
    }
    calls = {name: lambda run=run: run(x, labels) for name, run in runs.items()}
    report("step", turns(calls, rounds, steps, device))
    deployed = method.deploy(copy.deepcopy(wide[0]), copy.deepcopy(heads)).eval()
    plain = plain.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        calls = {name: lambda m=m: m(x) for name, m in (("plain", plain), ("deployed", deployed))}
        report("forward", turns(calls, rounds, steps, device))


def decomposition(scale: int) -> None:
    matrices = [(rows, columns) for _ in range(6) for rows, columns in [(768, 768)] * 4 + [(3072, 768), (768, 3072)]]
    generator = torch.Generator().manual_seed(0)
    start = CLOCK()
    worst = 0.0
    for size in matrices:
        weight, shape = 0.02 * torch.randn(size, generator=generator), automatic(*size, scale)
        tensors = mpo.decompose(weight, shape)
        worst = max(worst, float((mpo.contract(tensors, shape) - weight).norm() / weight.norm()))
    print(
        f"{len(matrices)} matrices of a 6-layer BERT, L = {scale}: {CLOCK() - start:.1f} s with "
        f"{torch.get_num_threads()} threads; relative error at most {worst:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--busy", action="store_true", help="time of the processor: for one thread on a busy machine")
    parser.add_argument("--only", choices=("step", "decompose"))
    options = parser.parse_args()
    if options.busy:
        global CLOCK
        CLOCK = time.process_time
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.only != "decompose":
        training(torch.device(options.device), options.rounds, options.steps, options.scale)
    if options.only != "step":
        decomposition(options.scale)


if __name__ == "__main__":
    main()

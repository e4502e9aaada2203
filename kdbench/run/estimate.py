"""How long jobs will take: from finished jobs on the same device, else from a few timed steps of each model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import mean

import torch
import torch.nn.functional as F
from torch import nn

from kdbench.result import Result
from kdbench.run.saving import savings
from kdbench.suite.fields import Model, Recipe
from kdbench.suite.job import Job
from kdbench.train.frozen import exact
from kdbench.train.provenance import device_name
from kdbench.train.stage import length
from kdbench.train.workbench import Workbench


def seconds(jobs: Sequence[Job], bench: Workbench, results: Iterable[Result]) -> dict[str, float]:
    """Estimated training seconds by job key, frozen teachers' own training not included.

    Where a job of the same pair and method is finished on this device, its mean time; else the time of one forward
    and backward pass of every learner and one forward pass of every frozen role, times the steps. Of the forward passes
    that stored answers save, nobody waits for any.
    """
    name = device_name(bench.device)
    known: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.cost is not None and result.provenance.get("device_name") == name:
            known.setdefault((result.pair, result.method), []).append(result.cost.spent_seconds)
    timed: dict[str, tuple[float, float]] = {}

    def step(model: Model, recipe: Recipe, job: Job, role: str) -> tuple[float, float]:
        key = f"{model.model} {model.options} {model.input_size} {model.layers} {recipe.batch_size}"
        if model.answers is not None:
            return 0.0, 0.0
        if key not in timed:
            timed[key] = _time(bench.build(job, role), bench, recipe.batch_size)
        return timed[key]

    out = {}
    saved = savings(jobs, bench.data, bench.room)
    for job in jobs:
        if times := known.get((job.pair, job.label)):
            out[job.key] = mean(times)
            continue
        whole = length(job.recipe, 1.0, len(bench.data.train.labels))
        total = 0.0
        for stage in job.plan.stages:
            teachers = {t for ts in stage.learners.values() for t in ts} - set(stage.learners)
            total += stage.share * sum(step(job.roles[role], job.recipe, job, role)[0] for role in stage.learners)
            if not exact(job.method, job.recipe):  # else they run once
                left = {role: saved[job.key, role].share if (job.key, role) in saved else 1.0 for role in teachers}
                total += stage.share * sum(
                    step(job.roles[role], job.recipe, job, role)[1] * left[role] for role in left
                )
        out[job.key] = whole.steps * whole.accumulate * total
    return out


def _time(model: nn.Module, bench: Workbench, batch: int) -> tuple[float, float]:
    """Seconds of (forward and backward, forward alone) for one batch; the better of two after a warm-up."""
    x = torch.zeros(batch, *bench.data.shape, device=bench.device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.int64, device=bench.device)
    model.to(memory_format=torch.channels_last).train()

    def learn() -> None:
        F.cross_entropy(model(x), y).backward()

    def look() -> None:
        with torch.no_grad():
            model(x)

    best = []
    for function in (learn, look):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function()
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            times.append(time.perf_counter() - start)
        best.append(min(times[1:]))
    return best[0], best[1]

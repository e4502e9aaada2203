"""One stage while it is trained: who learns and who teaches in it, how long it is, and where it stands.

A stage is so many optimiser steps. They run through epochs, each a permutation of the training set; a report (the means
of the metrics, a validation, a curve's next value) follows every `interval` steps and the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.batches import Source
from kdbench.method import Stage
from kdbench.models.taps import Tapped
from kdbench.suite.fields import Recipe
from kdbench.train.frozen import Voice
from kdbench.train.state import State


@dataclass
class Learner:
    """One role while it learns."""

    model: nn.Module
    heads: nn.Module
    optimizer: torch.optim.Optimizer
    forward: Tapped

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass(frozen=True)
class Length:
    """How long a stage is, in optimiser steps; `accumulate` batches of `batch` examples make one."""

    steps: int
    per_epoch: int
    interval: int
    batch: int
    accumulate: int

    @property
    def epochs(self) -> int:
        """The last one may be cut short."""
        return -(-self.steps // self.per_epoch)

    @property
    def reports(self) -> int:
        return -(-self.steps // self.interval)


def length(recipe: Recipe, share: float, examples: int) -> Length:
    """Of a stage that takes `share` of the recipe's time, on so many training examples."""
    batch = min(recipe.batch_size, examples)
    accumulate = min(recipe.accumulate, examples // batch)
    per_epoch = examples // (batch * accumulate)
    if recipe.steps is not None:
        steps, interval = max(1, round(share * recipe.steps)), recipe.validate_every
        interval = per_epoch if interval == 1 else interval
    else:
        steps, interval = max(1, round(share * recipe.length)) * per_epoch, per_epoch
    return Length(steps, per_epoch, interval, batch, accumulate)


@dataclass
class StageRun:
    """A stage and where it stands: `epoch` and the `step` within it are the next ones."""

    number: int
    stage: Stage
    length: Length
    first_epoch: int  # epochs of the stages before it: its augmentation differs from theirs
    first_report: int
    learners: dict[str, Learner]
    source: Source  # of its examples: the training split, or what the method chose
    frozen: dict[str, Voice] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    indices: Tensor | None = None  # of the examples of an epoch that has begun
    generators: list[Tensor] = field(default_factory=list)  # their states, inside an epoch
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the metrics since the last report
    batches: int = 0  # that were summed

    @property
    def done(self) -> int:
        return self.epoch * self.length.per_epoch + self.step

    @property
    def finished(self) -> bool:
        return self.done >= self.length.steps

    @property
    def report(self) -> int:
        """The number of the report that is due, or was last; from 1."""
        return -(-self.done // self.length.interval)

    @property
    def reports_now(self) -> bool:
        return self.finished or self.done % self.length.interval == 0

    def steps_ahead(self, checkpoint_every: int | None) -> int:
        """To the next moment at which something else than a step is due."""
        length, done = self.length, self.done
        ahead = [length.steps - done, length.per_epoch - self.step, length.interval - done % length.interval]
        if checkpoint_every is not None:
            ahead.append(checkpoint_every - done % checkpoint_every)
        return min(ahead)

    def advance(self) -> None:
        """One step is done."""
        self.step += 1
        if self.step == self.length.per_epoch:
            self.epoch, self.step = self.epoch + 1, 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.batches += 1

    def means(self) -> dict[str, float]:
        """Of the metrics since the last report. The only wait for the device."""
        values = (torch.stack(list(self.sums.values())) / self.batches).tolist()
        means = dict(zip(self.sums, values, strict=True))
        self.sums, self.batches = {}, 0
        return means

    # checkpoints -----------------------------------------------------------------------------------------------------
    def inside(self) -> dict[str, Any]:
        """What a checkpoint between two epochs' ends or reports needs beside the models: {} where it is at both."""
        kept: dict[str, Any] = {}
        if self.indices is not None:
            kept |= {"indices": self.indices, "generators": self.generators}
        if self.batches:
            kept |= {"sums": self.sums, "batches": self.batches}
        return kept

    def resume(self, state: State) -> None:
        inside = state.tensors.get("inside", {})
        self.epoch, self.step = state.epoch, state.step
        self.indices, self.generators = inside.get("indices"), inside.get("generators", [])
        self.sums, self.batches = dict(inside.get("sums", {})), inside.get("batches", 0)


def states_of(rng: torch.Generator) -> list[Tensor]:
    """Of the method's generator and of torch's own, on the CPU and where that one is."""
    own = [torch.cuda.get_rng_state(rng.device)] if rng.device.type == "cuda" else []
    return [rng.get_state(), torch.get_rng_state(), *own]


def restore(rng: torch.Generator, states: list[Tensor]) -> None:
    """What `states_of` noted."""
    method, cpu, *own = (state.cpu() for state in states)
    rng.set_state(method)
    torch.set_rng_state(cpu)
    for state in own:
        torch.cuda.set_rng_state(state, rng.device)

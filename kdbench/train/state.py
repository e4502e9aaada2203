"""What goes into a training, where it stands, and what comes out: the engine's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from torch import Tensor, nn

from kdbench.data import DataSet
from kdbench.losses import wide
from kdbench.method import Method, Plan
from kdbench.suite.fields import Recipe
from kdbench.tasks import Metric, combined
from kdbench.train.table import Shelf


class Diverged(Exception):
    """The loss is no longer finite; the sentence becomes the result."""


@dataclass(frozen=True)
class Training:
    """All that one training needs. `models` maps every role of the plan to a module on the device."""

    method: Method
    plan: Plan
    models: Mapping[str, nn.Module]
    data: DataSet  # on the device
    recipe: Recipe
    seed: int
    folders: Mapping[str, Path] = field(default_factory=dict)  # of frozen roles: where their surveys are kept
    shelves: Mapping[str, Shelf] = field(default_factory=dict)  # of frozen roles: where their answers may be kept


@dataclass
class State:
    """Where a training stands; a checkpoint holds exactly this."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # losses that are not finite may be in the curves

    stage: int = 0
    epoch: int = 0  # the next one of the stage, or the one that it is in
    step: int = 0  # the next one of the epoch
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    looked_up: float = 0.0  # of `seconds`, what frozen roles would have taken whose answers were looked up
    images: int = 0
    tensors: dict[str, Any] = field(
        default_factory=dict
    )  # state dicts by role: models, heads, optimizers; `StageRun.inside`
    notes: list[str] = field(default_factory=list)  # sentences for the result
    scan: str | None = None  # the backends of its models' selective scans, which round differently


@dataclass(frozen=True)
class Trained:
    """The deployed answer and what its training cost."""

    answer: nn.Module
    parts: tuple[nn.Module, ...]  # the deployed model of every answer role, in order
    curves: dict[str, list[float | None]]
    seconds: float
    cpu_seconds: float  # of this process's threads
    looked_up: float  # of `seconds`, see `State`
    images: int
    epochs: int
    learner_parameters: int
    head_parameters: int
    notes: tuple[str, ...] = ()  # sentences for the result
    queries: int | None = None  # about which frozen roles were asked, where the method chooses


@dataclass(frozen=True)
class Progress:
    """Reported after each epoch, or after so many steps: `epoch` and `epochs` then count these."""

    stage: int
    stages: int
    epoch: int
    epochs: int
    images_per_second: float
    metrics: dict[str, float]
    seconds: float = 0.0  # of training, so far
    clock: str = "epoch"  # what `epoch` counts: or "step"
    unit: str = "image"  # what the speed is per
    headline: Metric | None = None

    @property
    def speed(self) -> str:
        """ "812 images/s" """
        return f"{self.images_per_second:.0f} {self.unit}s/s"

    @property
    def reached(self) -> str:
        """ ", val 56.78%": the headline on validation, where it was just measured."""
        metric = self.headline
        if metric is None:
            return ""
        named = (name for name in self.metrics if name.startswith("val/") and name.endswith(f"/{metric.name}"))
        value = next((self.metrics[name] for name in named), None)
        return "" if value is None else f", val {metric.shown(value)}"


class Sum(nn.Module):
    """Summed (or mean) answers of several models: the answer of a plan with more than one role; sums in float32."""

    def __init__(self, models: Sequence[nn.Module], combine: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.combine: Literal["sum", "mean"] = combine

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return combined([wide(model(*inputs, **named)) for model in self.models], self.combine)

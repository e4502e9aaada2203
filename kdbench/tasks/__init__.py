"""Tasks: what a model's answer means, what is right, and what is measured. One task a file, found by its name.

A task turns what a model says into rows of decisions: logits (R, C) or numbers (R, D). R rows are the examples of a
classification, the valid tokens of a language model, the fields of a multi-label problem, the valid pixels of a map.
Whoever works on rows (losses, scores, boards) works for every task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from kdbench.lazy import torch
from kdbench.method import Refusal
from kdbench.targets import Targets

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdbench.batch import Batch


@dataclass(frozen=True)
class Metric:
    """A number that is measured of an answer.

    `name` is what records call it (`test/<name>`), `unit` stands behind it ("%", "nats", ""), `better` is its good
    direction, `digits` how many decimals are shown, `gap` the smallest difference between teacher and floor of which a
    share means something, `bounds` the values that it can take.
    """

    name: str
    unit: str = ""
    better: Literal["up", "down"] = "up"
    digits: int = 3
    gap: float = 0.0
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    title: str = ""  # of a column; default: the name

    @property
    def sign(self) -> int:
        """1 where more is better, else -1: sign * difference is a gain."""
        return 1 if self.better == "up" else -1


def combined(answers: Sequence[Tensor], how: Literal["sum", "mean"]) -> Tensor:
    """Summed or averaged answers of roles that answer together, all of one shape."""
    stacked = torch.stack(list(answers))
    return stacked.mean(0) if how == "mean" else stacked.sum(0)


class Scorer(Protocol):
    """Scores of a split, batch by batch: keeps numbers for each row at the most, never rows of logits."""

    def add(self, rows: Tensor, targets: Targets, teacher_rows: Tensor | None = None) -> None: ...

    def scores(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Task(ABC):
    """Base of all tasks. Subclasses are frozen dataclasses in `kdbench/tasks/<name>.py`.

    `outputs` is how many numbers a model answers for each row (C or D); `unit` what speed and MACs are counted per.
    """

    kind: ClassVar[Literal["categorical", "real"]]
    headline: ClassVar[Metric]
    metrics: ClassVar[tuple[Metric, ...]]  # all that `scorer` measures, the headline among them

    outputs: int
    unit: str = "image"

    def rows(self, answer: Any, batch: Batch | None = None) -> Tensor:
        """What counts of a model's answer, one row a decision: (R, C) logits or (R, D) numbers. Default: all of it."""
        rows: Tensor = answer
        return rows

    @abstractmethod
    def targets(self, labels: Tensor) -> Targets:
        """The targets of a batch, from its labels as the data set stores them (B, ...)."""

    @abstractmethod
    def supervised(self, rows: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named terms of learning from targets alone: means over rows, scalars."""

    def combined(self, answers: Sequence[Tensor], how: Literal["sum", "mean"]) -> Tensor:
        """The rule of an ensemble: summed or averaged answers, all of one shape."""
        return combined(answers, how)

    def confidence(self, rows: Tensor) -> Tensor:
        """How sure an answer is, (R,), higher is surer: for early exits and selection."""
        raise Refusal(f"{type(self).__name__} has no measure of confidence")

    @abstractmethod
    def scorer(self) -> Scorer:
        """A fresh scorer of one split."""

    def generate(self, model: nn.Module, inputs: Any, rng: torch.Generator) -> Any:
        """The learner's own samples."""
        raise Refusal(f"{type(self).__name__} generates nothing: methods that learn on their own samples do not fit it")

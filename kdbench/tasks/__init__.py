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
    from kdbench.method import Needs


@dataclass(frozen=True)
class Metric:
    """A number that is measured of an answer.

    `name` is what records call it (`test/<name>`), `unit` stands behind it ("%", "nats", ""), `better` is its good
    direction, `digits` how many decimals are shown, `gap` the smallest difference between teacher and floor of which a
    share means something, `bounds` the values that it can take. The rest is of boards: how a column is titled and
    explained, and whether there is one.
    """

    name: str
    unit: str = ""
    better: Literal["up", "down"] = "up"
    digits: int = 3
    gap: float = 0.0
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    title: str = ""  # of a column; default: the name
    word: str = ""  # in a sentence, "accuracy"; default: the title
    about: str | None = None  # what a legend says of its column; default: its direction; "": known, with its unit
    share: bool = False  # a fraction that boards show in percent
    column: bool = True  # whether boards have a column of it
    against_teacher: bool = False  # compares with the teacher's answers, and is nothing without it

    def shown(self, value: float) -> str:
        """ "56.78%", "0.614": rounded, with the unit. Other values than top-1's say what they are: "rmse 54.123"."""
        said = f"{self.number(value)}{'' if self.unit in ('', '%') else ' '}{self.unit}"
        return said if self.unit == "%" else f"{self.name} {said}"

    def number(self, value: float) -> str:
        """Rounded, as it stands below its heading: "56.78", "90.0%" of a share."""
        return f"{100 * value:.{self.digits}f}%" if self.share else f"{value:.{self.digits}f}"

    @property
    def sign(self) -> int:
        """1 where more is better, else -1: sign * difference is a gain."""
        return 1 if self.better == "up" else -1

    @property
    def named(self) -> str:
        """The title without the unit: "top-1", "RMSE"."""
        return self.title or self.name

    @property
    def heading(self) -> str:
        """Of a column, with the unit: "top-1 (%)", "RMSE"."""
        return f"{self.named} ({self.unit})" if self.unit and self.about != "" else self.named

    @property
    def words(self) -> str:
        """In a sentence: "accuracy"."""
        return self.word or self.named

    @property
    def direction(self) -> str:
        return "more is better" if self.better == "up" else "less is better"

    @property
    def points(self) -> str:
        """The unit of a difference behind a number, with a space before it: " points", " nats", ""."""
        return " points" if self.unit == "%" else f" {self.unit}" if self.unit else ""


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

    `outputs` is how many numbers a model answers for each row (C or D); `unit` is one example by its name, which speed
    and MACs are counted per. Whatever is known before data are read is of
    the class: kind, metrics, `followed`.
    """

    kind: ClassVar[Literal["categorical", "real"]]
    headline: ClassVar[Metric]
    metrics: ClassVar[tuple[Metric, ...]]  # all that `scorer` measures, the headline among them
    followed: ClassVar[tuple[str, ...]]  # metrics of the validation split that are written down while training runs
    mixable: ClassVar[bool] = True  # whether inputs are real numbers, which may be added

    outputs: int
    unit: str = "image"

    @classmethod
    def metric(cls, name: str) -> Metric | None:
        """The metric of that name."""
        return next((metric for metric in cls.metrics if metric.name == name), None)

    @classmethod
    def misfit(cls, needs: Needs) -> str:
        """Why a method with these needs cannot work here, as the end of a sentence; "" where it can."""
        if needs.categorical and cls.kind != "categorical":
            return "needs logits over classes, and the answers of this task are numbers"
        if needs.mixable and not cls.mixable:
            return "mixes inputs, and those of this task are no real numbers"
        if needs.on_policy and cls.generate is Task.generate:
            return "learns on the learner's own samples, and this task generates nothing"
        return ""

    def fitted(self, labels: Tensor) -> Task:
        """The task as it is for these training labels (N, ...): scales of numbers, shares of classes. Default: same."""
        return self

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

    def running(self, rows: Tensor, targets: Targets) -> dict[str, Tensor]:
        """What is followed of a training batch beside the loss: scalars by name, on the device. Default: nothing."""
        return {}

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

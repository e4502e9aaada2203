"""Regression: rows are numbers, of a whole example or of each of its positions (the pixels of a map).

A model answers in standard units, (y - centre) / scale with the mean and standard deviation of the training targets,
so that one recipe serves targets of every size; scores are in the targets' own units. A target that is not known is
NaN: its row has weight 0 and counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdbench.lazy import torch
from kdbench.losses import squared_error
from kdbench.targets import Targets
from kdbench.tasks import Metric, Task

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.batch import Batch


@dataclass(frozen=True)
class Regression(Task):
    """Numbers for each example, or for each position of it: (B, D), or maps (B, D, H, W) whose pixels are rows."""

    kind: ClassVar[Literal["real"]] = "real"
    headline: ClassVar[Metric] = Metric("rmse", "", "down", bounds=(0.0, float("inf")), title="RMSE")
    metrics: ClassVar[tuple[Metric, ...]] = (
        headline,
        Metric("mae", "", "down", bounds=(0.0, float("inf")), title="MAE"),
        Metric("r2", "", "up", bounds=(float("-inf"), 1.0), title="R²"),
        Metric(
            "rmse_to_teacher",
            bounds=(0.0, float("inf")),
            better="down",
            title="to the teacher",
            against_teacher=True,
            about="RMSE between the answers of student and teacher",
        ),
    )
    followed: ClassVar[tuple[str, ...]] = ("rmse", "r2")

    centre: tuple[float, ...] = ()  # of each of the D numbers; empty: 0
    scale: tuple[float, ...] = ()  # empty: 1

    def fitted(self, labels: Tensor) -> Regression:
        """With mean and standard deviation of the known training targets; a constant target has scale 1."""
        rows = _rows(labels).double()
        known = ~rows.isnan()
        count = known.sum(0).clamp_min(1)
        centre = rows.nan_to_num().sum(0) / count
        scale = (((rows - centre).nan_to_num().square()).sum(0) / count).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return replace(self, centre=tuple(centre.tolist()), scale=tuple(scale.tolist()))

    def rows(self, answer: Any, batch: Batch | None = None) -> Tensor:
        return _rows(answer)

    def targets(self, labels: Tensor) -> Targets:
        rows = _rows(labels)
        known = ~rows.isnan().any(1)
        if self.centre:
            rows = (rows - rows.new_tensor(self.centre)) / rows.new_tensor(self.scale)
        return Targets(rows.nan_to_num(), weight=known.to(rows.dtype))

    def supervised(self, rows: Tensor, targets: Targets) -> dict[str, Tensor]:
        return {"mse": squared_error(rows, targets)}

    def scorer(self) -> Scores:
        return Scores(self.scale or (1.0,))


@dataclass
class Scores:
    """Errors of one split in the targets' own units; keeps sums alone.

    rmse and mae (means over known rows and their numbers), r2 (1 - squared error / variance, the mean over numbers;
    absent where one of them is constant), and with a teacher rmse_to_teacher. Nothing where no row is known.
    """

    scale: tuple[float, ...]
    sums: dict[str, Tensor] = field(default_factory=dict)  # (D,) each, float64

    def add(self, rows: Tensor, targets: Targets, teacher_rows: Tensor | None = None) -> None:
        values, rows = targets.values.double(), rows.double()
        weight = torch.ones_like(values[:, :1]) if targets.weight is None else targets.weight.double()[:, None]
        error = rows - values
        found = {"n": weight.expand_as(values), "squared": error.square(), "absolute": error.abs()}
        found |= {"value": values, "value_squared": values.square()}
        if teacher_rows is not None:
            found["to_teacher"] = (rows - teacher_rows.double()).square()
        for name, terms in found.items():
            summed = terms.sum(0) if name == "n" else (weight * terms).sum(0)
            self.sums[name] = self.sums[name] + summed if name in self.sums else summed

    def scores(self) -> dict[str, float]:
        n, scale = self.sums["n"], self.sums["n"].new_tensor(self.scale)
        if not n.all():
            return {}

        def mean(name: str, unit: Tensor) -> float:
            return (unit * self.sums[name] / n).mean().item()

        variance = self.sums["value_squared"] - self.sums["value"].square() / n
        out = {"rmse": mean("squared", scale.square()) ** 0.5, "mae": mean("absolute", scale)}
        if (variance > 0).all():
            out["r2"] = (1 - self.sums["squared"] / variance).mean().item()
        if "to_teacher" in self.sums:
            out["rmse_to_teacher"] = mean("to_teacher", scale.square()) ** 0.5
        return out


def _rows(values: Tensor) -> Tensor:
    """(B,) -> (B, 1); (B, D) as it is; (B, D, ...) -> one row (D,) for each position, example by example."""
    if values.ndim == 1:
        return values[:, None]
    return values if values.ndim == 2 else values.movedim(1, -1).reshape(-1, values.shape[1])

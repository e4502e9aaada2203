"""Do Deep Nets Really Need to be Deep?
J. Ba, R. Caruana. NIPS 2014, arXiv 1312.6184.

    L = w_s L_task(y, z_s) + w_i mean_r d(z_s, z_t)        d = |z_s - z_t|^2 / D        (the paper: no labels, w_s = 0)

z_s, z_t rows (R, D): numbers in standard units, or logits, on which the paper regresses. `huber` is quadratic up to
`delta` and linear beyond, P. J. Huber, "Robust Estimation of a Location Parameter", 1964: a teacher's few large errors
count less. The method for real rows, where softened classes do not exist. Several teachers: the mean of their terms.
Rows whose target is not known do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F
from kdbench.losses import mean_of, row_mean, supervised, wide
from kdbench.method import Method, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def distances(rows_s: Tensor, rows_t: Tensor, distance: str, delta: float) -> Tensor:
    """Mean over the D numbers of each row, (R,): squared differences, or Huber's, doubled to agree with them below."""
    s, t = wide(rows_s), wide(rows_t)
    if distance == "squared":
        return (s - t).square().mean(1)
    return 2 * F.huber_loss(s, t, reduction="none", delta=delta).mean(1)


@dataclass(frozen=True)
class Imitate(Method):
    """Regress the teacher's rows: numbers, or logits (Ba & Caruana 2014)."""

    family = "logits"
    paper = Paper("Do Deep Nets Really Need to be Deep?", "NIPS", 2014, "1312.6184")

    weight: float = knob(1.0, "weight of the distance to the teacher's rows", low=0.01, high=100.0, log=True)
    ce_weight: float = knob(1.0, "weight of the task's own term", low=0.0, high=2.0)
    distance: str = knob("squared", "squared, or Huber's", choices=("squared", "huber"))
    delta: float = knob(1.0, "huber: where it becomes linear", low=0.05, high=5.0, log=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        imitate = mean_of(
            row_mean(distances(learner.rows, t.rows, self.distance, self.delta), batch.targets)
            for t in teachers.values()
        )
        return {"ce": self.ce_weight * supervised(learner, batch), "imitate": self.weight * imitate}

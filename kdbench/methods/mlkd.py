"""Multi-Level Logit Distillation (MLKD).

Y. Jin, J. Wang, D. Lin. CVPR 2023.

    D_T = T^2 mean_b KL(p_t || p_s) + |P_t' P_t - P_s' P_s|^2 / C + |P_t P_t' - P_s P_s'|^2 / B
    L = sum over two views [ w_ce CE + w_kd sum over temperatures D_T ]

P (B, C) holds the rows p = softmax(z / T); its parts compare examples, classes, and the batch. Temperatures 2 to 6 and
weights 0.1 / 0.9 are the released values. The second view is another draw of the recipe's own augmentation; the paper's
is RandAugment, its first crop and flip alone. The released code weighs parts by the share of confident examples or
classes (its masks act on a mean), takes two temperatures of the second view from the first, and drops that view's class
and batch parts: none of it here. Both networks see every image twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import torch
from kdbench.losses import full_precision, kl_rows, log_probabilities, mean_of, supervised
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def levels(rows_s_BC: Tensor, rows_t_BC: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of D_T: of examples, of classes, of the batch; scalars."""
    log_s, log_t = (log_probabilities(rows, temperature) for rows in (rows_s_BC, rows_t_BC))
    with full_precision(log_s):
        p_s, p_t = log_s.exp(), log_t.exp()
        classes = (p_t.T @ p_t - p_s.T @ p_s).square().sum() / p_s.shape[1]
        batch = (p_t @ p_t.T - p_s @ p_s.T).square().sum() / p_s.shape[0]
    return temperature**2 * kl_rows(log_t, log_s).mean(), classes, batch


@dataclass(frozen=True)
class MLKD(Method):
    """Multi-level logits: examples, classes and batch, at several temperatures, on two views (Jin et al. 2023)."""

    family = "logits"
    paper = Paper("Multi-Level Logit Distillation", "CVPR", 2023)

    temperatures: tuple[float, ...] = knob((2.0, 3.0, 4.0, 5.0, 6.0), "each softens both distributions", low=1, high=20)
    ce_weight: float = knob(0.1, "weight of the cross-entropy with the labels", low=0.0, high=2.0)
    kd_weight: float = knob(0.9, "weight of each part at each temperature", low=0.0, high=20.0)

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ValueError("temperatures: mlkd needs at least one")

    def needs(self) -> Needs:
        return Needs(views=2, categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        ce = torch.stack([supervised(view, batch) for view in (learner, *learner.views)]).sum()
        return {
            "ce": self.ce_weight * ce,
            "mlkd": self.kd_weight * mean_of(self._all(learner, t) for t in teachers.values()),
        }

    def _all(self, learner: Out, teacher: Out) -> Tensor:
        views = zip((learner, *learner.views), (teacher, *teacher.views), strict=True)
        parts = [part for s, t in views for kept in self.temperatures for part in levels(s.rows, t.rows, kept)]
        return torch.stack(parts).sum()

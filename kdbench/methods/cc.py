"""Correlation Congruence for Knowledge Distillation (CC).

B. Peng, X. Jin, J. Liu, D. Li, Y. Wu, Y. Liu, S. Zhou, Z. Zhang. ICCV 2019.

    k(a, b) = exp(-2 gamma) sum_p=0..P (2 gamma)^p / p! (a . b)^p        C_ij = k(f_i, f_j)
    L = CE + w mean_ij (C_s,ij - C_t,ij)^2

f are pooled features (B, D) of length 1: k is the Gaussian kernel exp(-gamma |a - b|^2) by its Taylor series. gamma 0.4
and P = 2 are the paper's; w = 100 is that of the re-implementation in Knowledge-Distillation-Zoo (AberHu), the paper's
0.003 stands beside other weights. RepDistiller's `CC` is another formula, which depends on the order of the batch.
Deviations: no embedding before the kernel, as widths need not agree; plain batches, the paper samples by classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F, torch
from kdbench.losses import full_precision, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def correlation(feature_BD: Tensor, gamma: float, order: int) -> Tensor:
    """The kernel's matrix (B, B), at most 1."""
    unit_BD = F.normalize(wide(feature_BD), dim=1)
    product_BB = unit_BD @ unit_BD.T
    parts = [(2 * gamma) ** p / math.factorial(p) * product_BB.pow(p) for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(parts).sum(0)


def cc_loss(feature_s_BD: Tensor, feature_t_BD: Tensor, gamma: float, order: int) -> Tensor:
    """Mean squared difference of the kernels' matrices; scalar. Widths may differ."""
    with full_precision(feature_s_BD):
        return F.mse_loss(correlation(feature_s_BD, gamma, order), correlation(feature_t_BD, gamma, order))


@dataclass(frozen=True)
class CC(Method):
    """Correlation congruence: a Gaussian kernel between the examples of a batch (Peng et al. 2019)."""

    family = "relations"
    paper = Paper("Correlation Congruence for Knowledge Distillation", "ICCV", 2019, "1904.01802")

    weight: float = knob(100.0, "weight of the correlation term", low=0.1, high=10000.0, log=True)
    gamma: float = knob(0.4, "of the Gaussian kernel", low=0.01, high=4.0, log=True)
    order: int = knob(2, "P, of the kernel's Taylor series", low=1, high=8)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        cc = mean_of(cc_loss(learner.pooled, t.pooled, self.gamma, self.order) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "cc": self.weight * cc}

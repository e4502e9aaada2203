"""Knowledge Distillation Based on Transformed Teacher Matching: the weighted form (WTTM).

K. Zheng, E.-H. Yang. ICLR 2024.

    u = sum_c p_t,c^gamma        L = w_ce CE + w mean_b u KL(p_t^gamma / u || p_s)

p = softmax(z), z logits (B, C). Examples on which the teacher is smooth count more: u is 1 for a certain teacher and
C^(1 - gamma) for a uniform one. gamma = 1 is KD at T = 1. gamma 0.1 and a weight near 4 are the paper's; it chooses
both for each pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import log_probabilities, mean_of, supervised
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.ttm import matching

if TYPE_CHECKING:
    from torch import Tensor, nn


def wttm(rows_s_RC: Tensor, rows_t_RC: Tensor, gamma: float) -> Tensor:
    """Mean over rows of u KL(transformed teacher || student); nats, scalar."""
    smooth_R = (gamma * log_probabilities(rows_t_RC)).logsumexp(1).exp()
    return (smooth_R * matching(rows_s_RC, rows_t_RC, gamma)).mean()


@dataclass(frozen=True)
class WTTM(Method):
    """Weighted transformed teacher matching: smooth answers of the teacher count more (Zheng & Yang 2024)."""

    family = "logits"
    paper = Paper("Knowledge Distillation Based on Transformed Teacher Matching", "ICLR", 2024, "2402.11148")

    gamma: float = knob(0.1, "power of the teacher's probabilities", low=0.05, high=1.0, log=True)
    weight: float = knob(4.0, "weight of the divergence", low=0.01, high=100.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        found = mean_of(wttm(learner.rows, t.rows, self.gamma) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "wttm": self.weight * found}

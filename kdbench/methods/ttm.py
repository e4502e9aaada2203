"""Knowledge Distillation Based on Transformed Teacher Matching (TTM).

K. Zheng, E.-H. Yang. ICLR 2024.

    q = p_t^gamma / sum_c p_t,c^gamma        L = w_ce CE + w mean_b KL(q || p_s)

p = softmax(z), z logits (B, C). Only the teacher is softened (gamma is 1 / T of its softmax); the student keeps
temperature 1, which KD's loss equals but for a Renyi entropy that TTM so adds. gamma = 1 is KD at T = 1. gamma 0.1 to
0.2 are the paper's, its weights are chosen for each pair (45 is its example, VGG-13 to VGG-8): tune the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import kl_rows, log_probabilities, mean_of, supervised
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def matching(rows_s_RC: Tensor, rows_t_RC: Tensor, gamma: float) -> Tensor:
    """KL of the transformed teacher and the student of each row; nats, (R,)."""
    return kl_rows(log_probabilities(rows_t_RC, 1 / gamma), log_probabilities(rows_s_RC))


@dataclass(frozen=True)
class TTM(Method):
    """Transformed teacher matching: only the teacher is softened (Zheng & Yang 2024)."""

    family = "logits"
    paper = Paper("Knowledge Distillation Based on Transformed Teacher Matching", "ICLR", 2024, "2402.11148")

    gamma: float = knob(0.1, "power of the teacher's probabilities", low=0.05, high=1.0, log=True)
    weight: float = knob(45.0, "weight of the divergence", low=0.1, high=100.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        ttm = mean_of(matching(learner.rows, t.rows, self.gamma).mean() for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "ttm": self.weight * ttm}

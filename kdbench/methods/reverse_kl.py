"""MiniLLM: Knowledge Distillation of Large Language Models.

Y. Gu, L. Dong, F. Wei, M. Huang. ICLR 2024.

    L = w_ce CE + w T^2 mean_b KL(softmax(z_s / T) || softmax(z_t / T))

The divergence is the other way round than in KD: a student that cannot be everywhere where the teacher is seeks one of
its modes. z logits (B, C). Here over classes and exact; the paper estimates it over sequences that the student samples,
by policy gradient. T = 1 is the paper's, the weights are ours. Several teachers: the mean of their terms.
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


def reverse_kl(rows_s_RC: Tensor, rows_t_RC: Tensor, temperature: float) -> Tensor:
    """T^2 mean_r KL(p_s || p_t) of softened distributions; nats, scalar."""
    log_s, log_t = (log_probabilities(rows, temperature) for rows in (rows_s_RC, rows_t_RC))
    return temperature**2 * kl_rows(log_s, log_t).mean()


@dataclass(frozen=True)
class ReverseKL(Method):
    """Reverse divergence: the student seeks a mode of the teacher (Gu et al. 2024)."""

    family = "logits"
    paper = Paper("MiniLLM: Knowledge Distillation of Large Language Models", "ICLR", 2024, "2306.08543")

    temperature: float = knob(1.0, "softens both distributions", low=1.0, high=20.0, log=True)
    weight: float = knob(1.0, "weight of the divergence", low=0.01, high=20.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        kl = mean_of(reverse_kl(learner.rows, t.rows, self.temperature) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "reverse_kl": self.weight * kl}

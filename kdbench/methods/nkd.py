"""From Knowledge Distillation to Self-Knowledge Distillation: normalised loss (NKD).

Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li. ICCV 2023.

    L = w_ce CE - mean_b [ p_t,y ln p_s,y + gamma T^2 sum_c!=y q_t,c ln q_s,c ]

p = softmax(z), q = softmax(z / T) among the classes that are not the label y, z logits (B, C). Cross-entropies, not
divergences: for equal networks the term is an entropy, not 0, with no gradient but that of p_t,y. Defaults gamma 1.5
and T 1 are the released ImageNet values (3.5 and 3 on CIFAR-100). The label enters the term: one-hot targets are
needed. Several teachers: the mean of their terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import log_probabilities, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def nkd_loss(rows_s_RC: Tensor, rows_t_RC: Tensor, labels_R: Tensor, gamma: float, temperature: float) -> Tensor:
    """Target and normalised non-target cross-entropy with the teacher; nats, scalar."""
    y_R1 = labels_R[:, None]
    log_s, log_t = (log_probabilities(rows).gather(1, y_R1).squeeze(1) for rows in (rows_s_RC, rows_t_RC))
    # The label's class is left out by a logit of -inf; its 0 ln 0 is then set to 0.
    q_s, q_t = (
        log_probabilities(wide(rows).scatter(1, y_R1, -float("inf")), temperature) for rows in (rows_s_RC, rows_t_RC)
    )
    among_R = (q_t.exp() * q_s.scatter(1, y_R1, 0.0)).sum(1)
    return -(log_t.exp() * log_s + gamma * temperature**2 * among_R).mean()


@dataclass(frozen=True)
class NKD(Method):
    """Normalised distillation: target class, and all others normalised among themselves (Yang et al. 2023)."""

    family = "logits"
    paper = Paper("From Knowledge Distillation to Self-Knowledge Distillation", "ICCV", 2023, "2303.13005")

    gamma: float = knob(1.5, "weight of the non-target part", low=0.0, high=10.0)
    temperature: float = knob(1.0, "softens the non-target part", low=1.0, high=20.0, log=True)
    weight: float = knob(1.0, "weight of the whole term", low=0.01, high=10.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        nkd = mean_of(
            nkd_loss(learner.rows, t.rows, batch.labels, self.gamma, self.temperature) for t in teachers.values()
        )
        return {"ce": self.ce_weight * supervised(learner, batch), "nkd": self.weight * nkd}

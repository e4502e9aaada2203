"""Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective (WSLD).

H. Zhou, L. Song, J. Chen, Y. Zhou, G. Wang, J. Yuan, Q. Zhang. ICLR 2021.

    w_b = 1 - exp(-CE_s / CE_t)        L = CE + alpha T^2 mean_b w_b CE(softmax(z_t / T), softmax(z_s / T))

CE_s and CE_t are cross-entropies of an example's label, without gradient; z logits (B, C). An example counts little
where the student already knows the label better than the teacher. alpha 2.25 (T 2 on ImageNet, 4 on CIFAR-100) is the
released value. As there, CE_t is kept away from 0 by 1e-7. One-hot targets are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import log_probabilities, mean_of, supervised
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-7  # the released code's


def wsld_loss(rows_s_RC: Tensor, rows_t_RC: Tensor, labels_R: Tensor, temperature: float) -> Tensor:
    """T^2 mean_r w_r CE(p_t, p_s) of softened distributions; nats, scalar."""
    ce_s, ce_t = (
        -log_probabilities(rows.detach()).gather(1, labels_R[:, None]).squeeze(1) for rows in (rows_s_RC, rows_t_RC)
    )
    weight_R = 1 - (-ce_s / (ce_t + EPS)).exp()
    log_s, log_t = (log_probabilities(rows, temperature) for rows in (rows_s_RC, rows_t_RC))
    return -(temperature**2) * (weight_R * (log_t.exp() * log_s).sum(1)).mean()


@dataclass(frozen=True)
class WSLD(Method):
    """Weighted soft labels: little weight where the student knows more than the teacher (Zhou et al. 2021)."""

    family = "logits"
    paper = Paper(
        "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
        "ICLR",
        2021,
        "2102.00650",
    )

    alpha: float = knob(2.25, "weight of the soft labels", low=0.01, high=20.0, log=True)
    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        wsld = mean_of(wsld_loss(learner.rows, t.rows, batch.labels, self.temperature) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "wsld": self.alpha * wsld}

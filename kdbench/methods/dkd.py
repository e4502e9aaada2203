"""Decoupled Knowledge Distillation.

B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang. CVPR 2022.

    TCKD = KL((p_t,y, 1 - p_t,y) || (p_s,y, 1 - p_s,y))          target class against all others
    NCKD = KL(p_t | not y || p_s | not y)                        among the other classes
    L = CE + min((epoch + 1) / warmup, 1) T^2 mean_b (alpha TCKD + beta NCKD)

p = softmax(z / T), z logits (B, C). Identity: KL(p_t || p_s) = TCKD + (1 - p_t,y) NCKD. Defaults alpha 1, beta 8, T 4
and a warm-up of 20 epochs of 240 are the released CIFAR-100 values (beta is 2 or 6 for some pairs); shorten the warm-up
with the recipe. Deviation: logarithms are taken by log-sum-exp over the classes concerned, not by shifting a logit by
1000, so nothing underflows. The label enters the term: one-hot targets are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F
from kdbench.losses import mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def decoupled(logits_s_BC: Tensor, logits_t_BC: Tensor, targets_BC: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each example at temperature 1, without weights: (B,) and (B,). `targets_BC` is one-hot."""
    is_y_BC = targets_BC > 0.5
    target, others, among = [], [], []
    for z_BC in (wide(logits_t_BC), wide(logits_s_BC)):
        z_others_BC, total_B = z_BC.masked_fill(is_y_BC, -float("inf")), z_BC.logsumexp(1)
        target.append(z_BC.masked_fill(~is_y_BC, 0).sum(1) - total_B)
        others.append(z_others_BC.logsumexp(1) - total_B)
        among.append(F.log_softmax(z_others_BC, dim=1).masked_fill(is_y_BC, 0))
    tckd_B = target[0].exp() * (target[0] - target[1]) + others[0].exp() * (others[0] - others[1])
    return tckd_B, (among[0].exp() * (among[0] - among[1])).sum(1)


def dkd_loss(
    logits_s_BC: Tensor, logits_t_BC: Tensor, targets_BC: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """T^2 mean_b (alpha TCKD + beta NCKD) on logits divided by T; nats, scalar."""
    tckd_B, nckd_B = decoupled(wide(logits_s_BC) / temperature, wide(logits_t_BC) / temperature, targets_BC)
    return temperature**2 * (alpha * tckd_B + beta * nckd_B).mean()


@dataclass(frozen=True)
class DKD(Method):
    """Decoupled knowledge distillation: target and non-target classes weighted apart (Zhao et al. 2022)."""

    family = "logits"
    paper = Paper("Decoupled Knowledge Distillation", "CVPR", 2022, "2203.08679")

    alpha: float = knob(1.0, "weight of the target-class part", low=0.0, high=16.0)
    beta: float = knob(8.0, "weight of the non-target part", low=0.0, high=16.0)
    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    warmup_epochs: int = knob(20, "epochs over which the term grows to its weight", low=0, high=240)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        dkd = mean_of(
            dkd_loss(learner.rows, t.rows, batch.targets.dense(), self.temperature, self.alpha, self.beta)
            for t in teachers.values()
        )
        grown = min((batch.epoch + 1) / max(self.warmup_epochs, 1), 1.0)
        return {"ce": self.ce_weight * supervised(learner, batch), "dkd": grown * dkd}

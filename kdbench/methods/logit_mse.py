"""Do Deep Nets Really Need to be Deep?

L. J. Ba, R. Caruana. NIPS 2014.

    L = w_ce CE + w mean_bc (z_s - z_t)^2

z logits (B, C). Up to a factor, and for logits of equal means, the limit of KD as its temperature grows: T^2 KL of
softened distributions tends to half of this term for centred logits. The paper has no cross-entropy (`ce_weight: 0`);
the default weights are ours. Several teachers: the mean of their terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F
from kdbench.losses import mean_of, supervised, wide
from kdbench.method import Method, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LogitMSE(Method):
    """Logit regression: squared distance of logits (Ba & Caruana 2014)."""

    family = "logits"
    paper = Paper("Do Deep Nets Really Need to be Deep?", "NIPS", 2014, "1312.6184")

    weight: float = knob(0.1, "weight of the squared distance", low=0.001, high=10.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        mse = mean_of(F.mse_loss(wide(learner.rows), wide(t.rows)) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "logit_mse": self.weight * mse}

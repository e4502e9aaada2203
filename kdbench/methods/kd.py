"""Distilling the Knowledge in a Neural Network.

G. Hinton, O. Vinyals, J. Dean. NIPS 2014 workshop, arXiv 1503.02531.

    L = w_ce CE(y, softmax(z_s)) + w_kd T^2 mean_b KL(softmax(z_t / T) || softmax(z_s / T))

z_s, z_t logits (B, C). Defaults T = 4, 0.1 / 0.9 are the field's CIFAR-100 values (RepDistiller, mdistiller); with
equal weights the same pairs gain up to a point more, so tune them. Several teachers: the mean of their terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import mean_of, soft_kl, supervised
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class KD(Method):
    """Knowledge distillation from softened logits (Hinton, Vinyals & Dean 2015)."""

    family = "logits"
    paper = Paper("Distilling the Knowledge in a Neural Network", "NIPS workshop", 2014, "1503.02531")

    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(0.1, "weight of the cross-entropy with the labels", low=0.0, high=2.0)
    kd_weight: float = knob(0.9, "weight of the distillation term", low=0.0, high=20.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        kd = mean_of(soft_kl(learner.rows, t.rows, self.temperature) for t in teachers.values())
        ce = supervised(learner, batch)
        return {"ce": self.ce_weight * ce, "kd": self.kd_weight * kd}

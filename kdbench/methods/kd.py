"""Knowledge distillation (Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network", 2015).

    L = w_ce CE(y, p_s) + w_kd T^2 mean_b KL(p_t^T || p_s^T)

Defaults are the field's on CIFAR (RepDistiller, mdistiller): T = 4, weights 0.1 and 0.9. Several teachers: the mean of
their terms. A learner without a teacher (the first of a chain) is trained with plain cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import torch
from kdbench.losses import cross_entropy, soft_divergence
from kdbench.method import Method, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class KD(Method):
    """Match the teacher's softened probabilities."""

    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(0.1, "weight of the labels", low=0.0, high=2.0)
    kd_weight: float = knob(0.9, "weight of the teacher", low=0.0, high=20.0)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        ce = cross_entropy(learner.logits_BC, batch.targets_BC)
        if not teachers:
            return {"ce": ce}
        terms = [soft_divergence(learner.logits_BC, t.logits_BC, self.temperature) for t in teachers.values()]
        return {"ce": self.ce_weight * ce, "kd": self.kd_weight * torch.stack(terms).mean()}

"""Similarity-preserving knowledge distillation (Tung & Mori, ICCV 2019).

    L = CE + w ||G_s - G_t||_F^2 / B^2,   G = rows of F F^T scaled to unit length, F (B, -1) the last block

Default w = 3000, as in the paper and RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F, torch
from kdbench.losses import cross_entropy
from kdbench.method import Method, Needs, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def sp_loss(feature_s: Tensor, feature_t: Tensor) -> Tensor:
    """Features (B, ...) of any two shapes -> a scalar. Invariant to rotation and to the scale of the features."""

    def similarities(feature: Tensor) -> Tensor:
        flat = feature.flatten(1)
        return F.normalize(flat @ flat.t(), dim=1)

    return (similarities(feature_s) - similarities(feature_t)).square().mean()


@dataclass(frozen=True)
class SP(Method):
    """Examples that are alike to the teacher are alike to the student."""

    weight: float = knob(3000.0, "weight of the similarities", low=10.0, high=30000.0, log=True)
    ce_weight: float = knob(1.0, "weight of the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block-1",), teacher=("block-1",))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        terms = [sp_loss(learner.blocks[-1], teacher.blocks[-1]) for teacher in teachers.values()]
        ce = self.ce_weight * cross_entropy(learner.logits_BC, batch.targets_BC)
        return {"ce": ce, "sp": self.weight * torch.stack(terms).mean()}

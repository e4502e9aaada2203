"""Relational knowledge distillation (Park, Kim, Lu & Cho, CVPR 2019).

    L = CE + w (25 Huber(d_s, d_t) + 50 Huber(a_s, a_t))

d are distances between pooled features, divided by their mean; a are cosines of the angles of triplets.
Weights as in the paper and RepDistiller. Invariant to rotation, translation and scale of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F, torch
from kdbench.losses import cross_entropy
from kdbench.method import Method, Needs, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def distances(e_BD: Tensor) -> Tensor:
    """Euclidean distances (B, B), zero on the diagonal, divided by the mean of the others."""
    square_B = e_BD.square().sum(dim=1)
    square_BB = (square_B[:, None] + square_B[None] - 2 * e_BD @ e_BD.t()).clamp(min=1e-12)
    away_BB = ~torch.eye(len(e_BD), dtype=torch.bool, device=e_BD.device)
    d_BB = square_BB.sqrt() * away_BB
    return d_BB / (d_BB.sum() / away_BB.sum())


def angles(e_BD: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angle at i between j and k."""
    unit_BBD = F.normalize(e_BD[None] - e_BD[:, None], dim=2)
    return unit_BBD @ unit_BBD.transpose(1, 2)


def rkd_loss(pooled_s_BD: Tensor, pooled_t_BD: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """A scalar.

    Raises:
        Refusal: fewer than three examples, which make no angle.
    """
    if len(pooled_s_BD) < 3:
        raise Refusal("rkd compares triplets and needs batches of at least three examples")
    distance = F.smooth_l1_loss(distances(pooled_s_BD), distances(pooled_t_BD))
    angle = F.smooth_l1_loss(angles(pooled_s_BD), angles(pooled_t_BD))
    return distance_weight * distance + angle_weight * angle


@dataclass(frozen=True)
class RKD(Method):
    """Keep distances and angles between examples."""

    weight: float = knob(1.0, "weight of both relations", low=0.01, high=10.0, log=True)
    distance_weight: float = knob(25.0, "weight of the distances", low=0.0, high=100.0)
    angle_weight: float = knob(50.0, "weight of the angles", low=0.0, high=200.0)
    ce_weight: float = knob(1.0, "weight of the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        terms = [
            rkd_loss(learner.pooled, teacher.pooled, self.distance_weight, self.angle_weight)
            for teacher in teachers.values()
        ]
        ce = self.ce_weight * cross_entropy(learner.logits_BC, batch.targets_BC)
        return {"ce": ce, "rkd": self.weight * torch.stack(terms).mean()}

"""Relational Knowledge Distillation.

W. Park, D. Kim, Y. Lu, M. Cho. CVPR 2019.

    distance: d_ij = |e_i - e_j| / mean of them          angle: a_ijk = cos of the angle at e_i between e_j and e_k
    L = CE + w (25 mean huber(d_s - d_t) + 50 mean huber(a_s - a_t))

e is the pooled feature (B, D); the means run over all pairs and triples, those with equal members included, as in
RepDistiller and mdistiller, whose weights these are; so for B = 2 every angle is the same and the term is 0. Deviation:
distances come from differences, not from |a|^2 + |b|^2 - 2ab, which cancels. Memory grows as B^2 D + B^3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F, torch
from kdbench.losses import full_precision, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-12


def relations(feature_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, B) divided by their mean over i != j, and cosines (B, B, B) of angles at the first index."""
    count = len(feature_BD)
    difference_BBD = feature_BD.unsqueeze(0) - feature_BD.unsqueeze(1)
    distance_BB = difference_BBD.norm(dim=2)
    mean = distance_BB.sum() / max(count * (count - 1), 1)
    direction_BBD = F.normalize(difference_BBD, dim=2)
    return distance_BB / mean.clamp_min(EPS), torch.bmm(direction_BBD, direction_BBD.transpose(1, 2))


def rkd_loss(feature_s_BD: Tensor, feature_t_BD: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """Weighted Huber losses of distances and angles; scalar. Feature sizes may differ."""
    with full_precision(feature_s_BD):
        distance_s, angle_s = relations(wide(feature_s_BD))
        distance_t, angle_t = relations(wide(feature_t_BD))
        huber_distance, huber_angle = F.smooth_l1_loss(distance_s, distance_t), F.smooth_l1_loss(angle_s, angle_t)
        return distance_weight * huber_distance + angle_weight * huber_angle


@dataclass(frozen=True)
class RKD(Method):
    """Relations between examples: distances and angles of pooled features (Park et al. 2019)."""

    family = "relations"
    paper = Paper("Relational Knowledge Distillation", "CVPR", 2019, "1904.05068")

    distance_weight: float = knob(25.0, "weight of the distances", low=0.0, high=250.0)
    angle_weight: float = knob(50.0, "weight of the angles", low=0.0, high=500.0)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        rkd = mean_of(
            rkd_loss(learner.pooled, t.pooled, self.distance_weight, self.angle_weight) for t in teachers.values()
        )
        return {"ce": self.ce_weight * supervised(learner, batch), "rkd": rkd}

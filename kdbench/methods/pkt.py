"""Learning Deep Representations with Probabilistic Knowledge Transfer (PKT).

N. Passalis, A. Tefas. ECCV 2018.

    S_ij = (cos(f_i, f_j) + 1) / 2        P = S with rows that sum to 1
    L = CE + w mean_ij P_t,ij ln(P_t,ij / P_s,ij)

f are pooled features (B, D): which examples lie near to which, as probabilities; widths need not agree. The mean over
B^2 and w = 30000 are those of the released code and of RepDistiller; it adds 1e-7 to each probability and length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F
from kdbench.losses import full_precision, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-7


def neighbours(feature_BD: Tensor) -> Tensor:
    """P (B, B): each row the probabilities of being near to an example."""
    unit_BD = F.normalize(wide(feature_BD), dim=1, eps=EPS)
    similarity_BB = (unit_BD @ unit_BD.T + 1) / 2
    return similarity_BB / similarity_BB.sum(1, keepdim=True)


def pkt_loss(feature_s_BD: Tensor, feature_t_BD: Tensor) -> Tensor:
    """Mean over B^2 of the terms of KL(P_t || P_s); scalar. Widths may differ."""
    with full_precision(feature_s_BD):
        p_s, p_t = neighbours(feature_s_BD), neighbours(feature_t_BD)
        return (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()


@dataclass(frozen=True)
class PKT(Method):
    """Probabilistic transfer: which examples are near to which (Passalis & Tefas 2018)."""

    family = "relations"
    paper = Paper("Learning Deep Representations with Probabilistic Knowledge Transfer", "ECCV", 2018, "1803.10837")

    weight: float = knob(30000.0, "weight of the term, a mean over B * B", low=10.0, high=300000.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        pkt = mean_of(pkt_loss(learner.pooled, t.pooled) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "pkt": self.weight * pkt}

"""Similarity-Preserving Knowledge Distillation.

F. Tung, G. Mori. ICCV 2019.

    G = rownorm(Q Q^T), Q (B, D * H * W)        L = CE + w / B^2 |G_s - G_t|_F^2

Q is the last block's features, flattened; rownorm divides each row by its Euclidean length. So it is the pattern of
similarities between the examples of a batch that is transferred, and shapes need not agree. w = 3000 as published.
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


def sp_loss(feature_s: Tensor, feature_t: Tensor) -> Tensor:
    """Mean squared difference of the row-normalised Gram matrices (B, B) of features (B, ...); scalar."""
    with full_precision(feature_s):
        flat_s, flat_t = (wide(feature).flatten(1) for feature in (feature_s, feature_t))
        gram_s_BB, gram_t_BB = (F.normalize(flat @ flat.T, dim=1) for flat in (flat_s, flat_t))
        return (gram_s_BB - gram_t_BB).pow(2).mean()


@dataclass(frozen=True)
class SP(Method):
    """Similarity-preserving: which examples of a batch excite alike (Tung & Mori 2019)."""

    family = "relations"
    paper = Paper("Similarity-Preserving Knowledge Distillation", "ICCV", 2019, "1907.09682")

    weight: float = knob(3000.0, "weight of the similarity term", low=1.0, high=30000.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block-1",), teacher=("block-1",))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        sp = mean_of(sp_loss(learner.blocks[-1], t.blocks[-1]) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "sp": self.weight * sp}

"""Class Attention Transfer Based Knowledge Distillation (CAT-KD).

Z. Guo, H. Yan, H. Li, X. Lin. CVPR 2023.

    A_c = sum_d W_cd F_d + b_c, one map (H, W) for each class        L = CE + w mean (pool(A_s) - pool(A_t))^2

The classifier at each place of the last map: class activation maps, whose average over places is the logit. pool
averages them to 2 x 2; w = 15 is the released value for one CIFAR-100 pair (it is set by pair), without normalising the
maps, as there. The released code rewrites the networks so that their last feature is A; here the classifier, linear on
the pooled last map, is applied to the map, and pairs for which it is not are refused. The student's classifier learns
from the maps too, so `heads` keeps a plain reference to it, not a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import full_precision, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob
from kdbench.methods.simkd import misfits
from kdbench.methods.srrl import linear_classifier

if TYPE_CHECKING:
    from torch import Tensor


def activation(map_BDHW: Tensor, classifier: nn.Linear, side: int) -> Tensor:
    """Class activation maps, averaged to `side` x `side` (or left as they are, if smaller); (B, C, side, side)."""
    size = (min(side, map_BDHW.shape[2]), min(side, map_BDHW.shape[3]))
    pooled_BDHW = F.adaptive_avg_pool2d(wide(map_BDHW), size)  # commutes with the classifier, and is cheaper first
    return classifier(pooled_BDHW.movedim(1, 3)).movedim(3, 1)


def at_places(profile: Profile) -> nn.Linear:
    """A network's classifier, if it is a linear layer on the pooled last map."""
    for sentence in misfits(profile):
        raise Refusal(f"cat_kd cannot read class activation maps of {profile.role}: {sentence}")
    return linear_classifier(profile, "cat_kd")


@dataclass(frozen=True)
class CATKD(Method):
    """Class attention transfer: where in the image each class is seen (Guo et al. 2023)."""

    family = "features"
    paper = Paper("Class Attention Transfer Based Knowledge Distillation", "CVPR", 2023)

    weight: float = knob(15.0, "weight of the maps' distance", low=0.1, high=1000.0, log=True)
    side: int = knob(2, "of the maps that are compared", low=1, high=8)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block-1", "pooled"), teacher=("block-1", "pooled"))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        heads = nn.Module()
        heads.teachers = nn.ModuleList(copy.deepcopy(at_places(t)).requires_grad_(False) for t in teachers.values())
        heads.__dict__["learner"] = at_places(learner)
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads.teachers, teachers.values(), strict=True)
        term = mean_of(self._maps(learner, t, heads.learner, classifier) for classifier, t in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "cat_kd": self.weight * term}

    def _maps(self, learner: Out, teacher: Out, own: nn.Linear, other: nn.Linear) -> Tensor:
        map_s, map_t = learner.blocks[-1], teacher.blocks[-1]
        side = min(self.side, *map_s.shape[2:], *map_t.shape[2:])
        with full_precision(map_s):
            return F.mse_loss(activation(map_s, own, side), activation(map_t, other, side))

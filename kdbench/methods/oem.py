"""Online Ensemble Model Compression using Knowledge Distillation (OEM, BOC-KD).

D. Walawalkar, Z. Shen, M. Savvides. ECCV 2020.

    z_e = mean of the logits of all networks, no gradient
    L = .7 CE + .15 sum over 3 blocks mean (r(F_i) - F_1)^2 + .15 T^2 mean_b KL(softmax(z_e / T) || softmax(z_i / T))

Networks of shrinking widths learn together: the widest (number 1: the pair's role `widest`, or else a network like its
teacher, trained along and not before), the `student`, and the pair's roles `peer`, `peer2`, ... of widths between. r is
a 1x1 convolution trained at half the rate; the widest has no feature term. Weights and T = 2 are the paper's (whose
factor T^2 is the code's). Five networks of ResNet-20's depth have 16-32-64, 12-25-51, 9-19-38, 6-12-25 and 3-6-12
channels, the last 3.95% of the first's weights. The student is the answer: a board has a row for each width by making
each the student.

Variant `base: separate`: the paper's networks share their first block, which roles cannot here. Maps of unequal size
are average-pooled to the smaller; blocks are paired from the last backwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, map_shape, pool_to_smaller, soft_kl, supervised, wide
from kdbench.method import Method, Needs, Paper, Plan, Prepared, Rates, Stage, knob
from kdbench.methods.at import last_backwards

if TYPE_CHECKING:
    from torch import Tensor

WIDEST, BLOCKS = "widest", 3


def ensemble(rows: Sequence[Tensor]) -> Tensor:
    """The mean of all logits, without gradient; (R, C)."""
    return torch.stack([wide(z) for z in rows]).mean(0).detach()


@dataclass(frozen=True)
class OEM(Method):
    """Online ensemble: networks of shrinking widths learn from their mean and from the widest (2020)."""

    family = "online"
    paper = Paper("Online Ensemble Model Compression using Knowledge Distillation", "ECCV", 2020, "2011.07449")

    temperature: float = knob(2.0, "softens all distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(0.7, "weight of the cross-entropy with the labels", low=0.0, high=2.0)
    feature_weight: float = knob(0.15, "weight of the distance to the widest network's maps", low=0.0, high=20.0)
    kd_weight: float = knob(0.15, "weight of the distance to the mean answer", low=0.01, high=20.0, log=True)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",), categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        everyone = (WIDEST, *(role for role in roles if re.fullmatch(r"peer\d*", role)), "student")
        taught = {role: tuple(other for other in everyone if other != role) for role in everyone}
        return Plan(stages=(Stage(taught),), copies={} if WIDEST in roles else {WIDEST: "teacher"})

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module | Prepared:
        if WIDEST not in teachers:
            return nn.ModuleList()
        pairs = last_backwards(learner.blocks, teachers[WIDEST].blocks)[:BLOCKS]
        made = nn.ModuleList(nn.Conv2d(map_shape(s)[0], map_shape(t)[0], 1) for s, t in pairs)
        return Prepared(made, {"*": Rates(lr=0.5)})

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        joined = ensemble([learner.rows, *(other.rows for other in teachers.values())])
        terms = {
            "ce": self.ce_weight * supervised(learner, batch),
            "oem": self.kd_weight * soft_kl(learner.rows, joined, self.temperature),
        }
        if len(heads):
            terms["oem_features"] = self.feature_weight * self._features(learner, teachers[WIDEST], heads)
        return terms

    def _features(self, learner: Out, widest: Out, heads: Any) -> Tensor:
        terms = []
        for adapt, (s, t) in zip(heads, last_backwards(learner.blocks, widest.blocks), strict=False):
            map_s, map_t = pool_to_smaller(as_map(s), as_map(t))
            terms.append(F.mse_loss(wide(adapt(map_s)), wide(map_t)))
        return torch.stack(terms).sum()

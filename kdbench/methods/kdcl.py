"""Online Knowledge Distillation via Collaborative Learning (KDCL).

Q. Guo, X. Wang, Y. Wu, Z. Yu, D. Liang, X. Hu, P. Luo. CVPR 2020.

    naive    z_e = the logits of the network with the least cross-entropy, for each example
    minlogit z_e,c = min over networks k of (z_k,c - z_k,y)
    L = CE(y, p_k) + w T^2 mean_b KL(softmax(z_e / T) || softmax(z_k / T))        for each network k

Every network learns from what all of them know together, itself included; z_e has no gradient. T = 3 and w = 1 are from
memory of the paper. The peers are the pair's roles `peer`, `peer2`, ..., or so many other students with initial weights
of their own; the pair's teacher is not used, the student is the answer. Deviations: all networks see the same augmented
images (the paper draws an augmentation for each); its linear form (a convex problem in each step) and its general one
(weights from validation) are not here. The label enters the term: one-hot targets are needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F, torch
from kdbench.losses import soft_kl, supervised, wide
from kdbench.method import Method, Needs, Paper, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def best(rows: Sequence[Tensor], labels_R: Tensor) -> Tensor:
    """Of each row, the logits of the network with the least cross-entropy; (R, C)."""
    rows_KRC = torch.stack([wide(z) for z in rows])
    ce_KR = torch.stack([F.cross_entropy(z, labels_R, reduction="none") for z in rows_KRC])
    chosen_1RC = ce_KR.argmin(0)[None, :, None].expand(1, *rows_KRC.shape[1:])
    return rows_KRC.gather(0, chosen_1RC)[0]


def least(rows: Sequence[Tensor], labels_R: Tensor) -> Tensor:
    """The least logit of each class, less that of the label; (R, C), at the label 0."""
    shifted = [wide(z) - wide(z).gather(1, labels_R[:, None]) for z in rows]
    return torch.stack(shifted).amin(0)


@dataclass(frozen=True)
class KDCL(Method):
    """Collaborative learning: students learn from the best of all their answers (Guo et al. 2020)."""

    family = "online"
    paper = Paper("Online Knowledge Distillation via Collaborative Learning", "CVPR", 2020)

    form: str = knob("minlogit", "how the networks' logits become one", choices=("minlogit", "naive"))
    peers: int = knob(1, "further students, where the pair declares no role `peer`", low=1, high=8)
    temperature: float = knob(3.0, "softens all distributions", low=1.0, high=20.0, log=True)
    weight: float = knob(1.0, "weight of the distillation term", low=0.01, high=20.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        names = ["peer", *(f"peer{number}" for number in range(2, self.peers + 1))]
        declared = [role for role in roles if re.fullmatch(r"peer\d*", role)]
        everyone = ("student", *(declared or names))
        taught = {role: tuple(other for other in everyone if other != role) for role in everyone}
        return Plan(stages=(Stage(taught),), copies={} if declared else dict.fromkeys(names, "student"))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        rows = [learner.rows.detach(), *(other.rows for other in teachers.values())]
        joined = (best if self.form == "naive" else least)(rows, batch.labels)
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "kdcl": self.weight * soft_kl(learner.rows, joined, self.temperature),
        }

"""Scale Decoupled Distillation (SDD), with KD as the distance.

S. Wei, C. Luo, Y. Luo. CVPR 2024.

    z^n = the classifier's logits of the last map, averaged over cell n of 1 x 1, 2 x 2, 4 x 4 grids
    L = w_ce CE + w mean_bn a_bn T^2 KL(softmax(z_t^n / T) || softmax(z_s^n / T))

a is 2 where the teacher is right in the cell and wrong in the whole image, or the other way round, and else 1. Grid (1)
alone is KD, if the network pools by averages. Grids and the factor 2 are the paper's; the weights are those of `kd`.
Grids finer than a network's last map are left out. Both classifiers must be linear on the pooled last map, else the
pair is refused. The paper's DKD and NKD forms are not here. The label enters the weights: one-hot targets are needed.

A student's classifier learns from the cells too, so `heads` keeps a plain reference to it, not a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import full_precision, kl_rows, log_probabilities, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob
from kdbench.methods.simkd import misfits

if TYPE_CHECKING:
    from torch import Tensor


def cells(map_BDHW: Tensor, grids: tuple[int, ...]) -> Tensor:
    """Averages of a map over the cells of square grids, one after the other: (B, N, D)."""
    return torch.cat([F.adaptive_avg_pool2d(wide(map_BDHW), side).flatten(2) for side in grids], 2).transpose(1, 2)


def sdd_loss(
    logits_s_BNC: Tensor, logits_t_BNC: Tensor, whole_t_BC: Tensor, labels_B: Tensor, temperature: float, factor: float
) -> Tensor:
    """T^2 mean over examples and cells, `factor` times where the teacher is right in one of cell and whole; scalar."""
    log_s, log_t = (log_probabilities(z.flatten(0, 1), temperature) for z in (logits_s_BNC, logits_t_BNC))
    kl_BN = kl_rows(log_t, log_s).view(logits_s_BNC.shape[:2])
    right_BN = logits_t_BNC.argmax(2) == labels_B[:, None]
    differ_BN = right_BN != (whole_t_BC.argmax(1) == labels_B)[:, None]
    return temperature**2 * torch.where(differ_BN, factor * kl_BN, kl_BN).mean()


def linear(profile: Profile) -> nn.Linear:
    """A network's classifier, if it is a linear layer on the pooled last map."""
    model: Any = profile.model
    for sentence in misfits(profile):
        raise Refusal(f"sdd cannot read logits of the regions of {profile.role}: {sentence}")
    found = model.get_submodule(model.kd_classifier)
    if not isinstance(found, nn.Linear):
        raise Refusal(f"sdd needs a linear classifier, and that of {profile.role} is {type(found).__name__}")
    return found


@dataclass(frozen=True)
class SDD(Method):
    """Scale decoupling: distil the logits of regions, doubtful ones twice as much (Wei et al. 2024)."""

    family = "logits"
    paper = Paper("Scale Decoupled Distillation", "CVPR", 2024, "2403.13512")

    grids: tuple[int, ...] = knob((1, 2, 4), "sides of the grids into which the last map is cut", low=1, high=16)
    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    factor: float = knob(
        2.0, "weight of cells in which the teacher is right as it is not in the whole", low=1.0, high=8.0
    )
    ce_weight: float = knob(0.1, "weight of the cross-entropy with the labels", low=0.0, high=2.0)
    kd_weight: float = knob(0.9, "weight of the distillation term", low=0.0, high=20.0)

    def needs(self) -> Needs:
        taps = ("block-1", "pooled")
        return Needs(learner=taps, teacher=taps, hard_labels=True, categorical=True)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        heads = nn.Module()
        heads.teachers = nn.ModuleList(copy.deepcopy(linear(t)).requires_grad_(False) for t in teachers.values())
        heads.__dict__["learner"] = linear(learner)
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads.teachers, teachers.values(), strict=True)
        sdd = mean_of(self._regions(learner, t, batch, heads.learner, classifier) for classifier, t in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "sdd": self.kd_weight * sdd}

    def _regions(self, learner: Out, teacher: Out, batch: Batch, own: nn.Linear, other: nn.Linear) -> Tensor:
        map_s, map_t = learner.blocks[-1], teacher.blocks[-1]
        grids = tuple(side for side in self.grids if side <= min(*map_s.shape[2:], *map_t.shape[2:])) or (1,)
        with full_precision(map_s):
            s_BNC, t_BNC = own(cells(map_s, grids)), other(cells(map_t, grids))
        return sdd_loss(s_BNC, t_BNC, teacher.rows, batch.labels, self.temperature, self.factor)

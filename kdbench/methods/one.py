"""Knowledge Distillation by On-the-Fly Native Ensemble (ONE).

X. Lan, X. Zhu, S. Gong. NeurIPS 2018.

    g = softmax(ReLU(BatchNorm(linear(v))))        z_e = sum_i g_i z_i
    L = sum_i CE(y, p_i) + CE(y, p_e) + r T^2 sum_i mean_b KL(softmax(z_e / T) || softmax(z_i / T))

The student is branch 0; each further branch is a copy of its last block and classifier with initial weights of its own,
behind the block before the last. v is that block's map, averaged over places; z_e has no gradient in the last term. r
grows as exp(-5 (1 - t)^2) over the first 80 of 300 epochs. Three branches, T = 3 and weights 1 are the paper's. No
teacher of the pair is used; the deployed student is branch 0 alone. Refused: a last block that does not take what the
block before it answers, and a classifier that is not linear on the pooled last map.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import soft_kl, supervised, wide
from kdbench.method import Method, Needs, Paper, Plan, Refusal, Stage, knob
from kdbench.methods.simkd import misfits

if TYPE_CHECKING:
    from torch import Tensor


def ensemble(share_BK: Tensor, rows_KBC: Tensor) -> Tensor:
    """z_e (B, C) of the branches' logits and shares."""
    return (share_BK.T[:, :, None] * rows_KBC).sum(0)


def ramp(epoch: int, epochs: float) -> float:
    """r: from exp(-5) to 1 over so many epochs."""
    return math.exp(-5 * (1 - min((epoch + 1) / epochs, 1.0)) ** 2) if epochs else 1.0


def fresh(module: nn.Module) -> nn.Module:
    """A copy with initial weights of its own, wherever a layer knows how to make them."""
    made = copy.deepcopy(module).float()  # a precision of its own would draw other numbers
    for layer in made.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    return made.to(next(module.parameters()))


def last_block(profile: Profile) -> nn.Module:
    """The module of the last block. Raises Refusal where it cannot be run behind the block before it."""
    model: Any = profile.model
    for sentence in misfits(profile):
        raise Refusal(f"one cannot add branches to {profile.role}: {sentence}")
    *_, tap = (tap for name, tap in model.kd_taps.items() if name.startswith("block"))
    block, like = copy.deepcopy(model.get_submodule(tap.path)).eval(), next(model.parameters())
    try:
        with torch.no_grad():
            found = tuple(block(like.new_zeros(2, *profile.blocks[-2])).shape[1:]) if tap.side == "output" else ()
    except (RuntimeError, TypeError, AttributeError):  # it takes something else
        found = ()
    if found != profile.blocks[-1]:
        raise Refusal(
            f"one runs copies of the last block of {profile.role} behind the block before it, and '{tap.path}' does "
            f"not take what that answers, {profile.blocks[-2]}"
        )
    return model.get_submodule(tap.path)


@dataclass(frozen=True)
class ONE(Method):
    """Native ensemble: branches of one network learn from their gated mean (Lan et al. 2018)."""

    family = "online"
    paper = Paper("Knowledge Distillation by On-the-Fly Native Ensemble", "NeurIPS", 2018, "1806.04606")

    branches: int = knob(3, "branches, the student's own among them", low=2, high=8)
    temperature: float = knob(3.0, "softens all distributions", low=1.0, high=20.0, log=True)
    ramp: float = knob(0.27, "share of the epochs over which the distillation grows", low=0.0, high=1.0)
    weight: float = knob(1.0, "weight of the distillation", low=0.01, high=20.0, log=True)

    def needs(self) -> Needs:
        return Needs(learner=("block-2", "block-1", "pooled"), categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan(stages=(Stage({"student": ()}),))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        model: Any = learner.model
        block, classifier = last_block(learner), model.get_submodule(model.kd_classifier)
        made = nn.Module()
        made.branches = nn.ModuleList(
            nn.ModuleList([fresh(block), fresh(classifier)]) for _ in range(self.branches - 1)
        )
        gate = nn.Linear(learner.blocks[-2][0], self.branches)
        made.gate = nn.Sequential(gate, nn.BatchNorm1d(self.branches), nn.ReLU())
        return made

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        shared = learner.blocks[-2]
        others = [classifier(block(shared).mean((2, 3))) for block, classifier in heads.branches]
        rows = [wide(z) for z in (learner.rows, *others)]
        joined = ensemble(wide(heads.gate(shared.mean((2, 3)))).softmax(1), torch.stack(rows))
        labelled = [supervised(replace(learner, rows=z), batch) for z in (*others, joined)]
        kd = torch.stack([soft_kl(z, joined.detach(), self.temperature) for z in rows]).sum()
        return {
            "ce": supervised(learner, batch),
            "one_labels": torch.stack(labelled).sum(),
            "one": self.weight * ramp(batch.epoch, self.ramp * batch.epochs) * kd,
        }

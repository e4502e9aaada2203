"""Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation (BYOT).

L. Zhang, J. Song, A. Gao, J. Chen, C. Bao, K. Ma. ICCV 2019.

    L = CE + sum_i [ (1 - alpha) CE(y, p_i) + alpha T^2 mean_b KL(softmax(z / T) || softmax(z_i / T))
                     + beta mean_b |v_i - v|^2 ]

A branch behind each block but the last has a feature v_i of the width of the pooled one, v, and logits z_i; z and v,
the deepest ones, have no gradient in the term. Branches are those of `ofa` (separable convolutions for maps, as
published) and stay behind at deployment. alpha 0.1, T 3 and beta 1e-6 are those of a re-implementation. No teacher of
the pair is used. Deviation: squared distance over all numbers, not only where the deepest feature is the larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import soft_kl, supervised, wide
from kdbench.method import Method, Needs, Paper, Plan, Refusal, Stage, knob
from kdbench.methods.ofa import answer, branch

if TYPE_CHECKING:
    from torch import Tensor


def feature_distance(feature_s_BD: Tensor, feature_t_BD: Tensor) -> Tensor:
    """Mean over examples of the squared distance; scalar."""
    return (wide(feature_s_BD) - wide(feature_t_BD)).square().sum(1).mean()


@dataclass(frozen=True)
class BYOT(Method):
    """Be your own teacher: shallow branches learn from the deepest answer (Zhang et al. 2019)."""

    family = "self-distillation"
    paper = Paper(
        "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
        "ICCV",
        2019,
        "1905.08094",
    )

    alpha: float = knob(0.1, "share of the deepest answer in what a branch learns", low=0.0, high=1.0)
    temperature: float = knob(3.0, "softens both distributions", low=1.0, high=20.0, log=True)
    beta: float = knob(1e-6, "weight of the features' distance, a sum over numbers", low=1e-9, high=1.0, log=True)

    def needs(self) -> Needs:
        return Needs(learner=("block*", "pooled"), categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan(stages=(Stage({"student": ()}),))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        (width,), shallow = learner.taps["pooled"], learner.blocks[:-1]
        if not shallow:
            raise Refusal(f"byot branches behind a block that is not the last; {learner.role} has one block")
        made, following = nn.ModuleList(), reversed(range(1, len(learner.blocks)))
        for shape, left in zip(shallow, following, strict=True):
            head = nn.Module()
            head.feature = branch(shape, width, left, width)
            head.classifier = nn.Linear(width, learner.classes)
            made.append(head)
        return made

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        deepest, ce, kd, hints = learner.detach(), [], [], []
        for head, block in zip(heads, learner.blocks[:-1], strict=True):
            feature = answer(head.feature, block)
            rows = head.classifier(feature)
            ce.append(supervised(replace(learner, rows=rows), batch))
            kd.append(soft_kl(rows, deepest.rows, self.temperature))
            hints.append(feature_distance(feature, deepest.pooled))
        own, kl, hint = (torch.stack(terms).sum() for terms in (ce, kd, hints))
        return {
            "ce": supervised(learner, batch),
            "byot": (1 - self.alpha) * own + self.alpha * kl,
            "byot_features": self.beta * hint,
        }

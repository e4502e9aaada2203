"""Learning from Multiple Teacher Networks: averaged soft targets.

S. You, C. Xu, C. Xu, D. Tao. KDD 2017.

    q = sum_k a_k softmax(z_k / T)        L = w_ce CE + w_kd T^2 mean_b KL(q || softmax(z_s / T))

z_k logits (B, C) of the pair's roles `teacher`, `teacher2`, `teacher3`, ..., in the order in which it lists them; a_k
their weights, even by default, made to sum to 1. `combine: logits` softens sum_k a_k z_k instead, and `losses` takes
sum_k a_k KL(softmax(z_k / T) || .), the gradient of the default but not its value. One teacher, or identical ones, are
KD. Defaults are those of `kd`. The paper's second term, on the order of distances in middle layers, is not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import log_probabilities, mean_of, soft_kl, supervised, wide
from kdbench.method import Method, Needs, Paper, Plan, Refusal, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor


def log_average(rows: list[Tensor], weights: list[float], temperature: float) -> Tensor:
    """ln q, the logarithm of the weighted mean of softened distributions; (R, C)."""
    return torch.stack(
        [log_probabilities(z_RC, temperature) + math.log(a) for z_RC, a in zip(rows, weights, strict=True) if a]
    ).logsumexp(0)


@dataclass(frozen=True)
class MultiKD(Method):
    """Several teachers with weights: their averaged soft targets (You et al. 2017)."""

    family = "several teachers"
    paper = Paper("Learning from Multiple Teacher Networks", "KDD", 2017)

    weights: tuple[float, ...] = knob((), "one for each teacher, in the pair's order; none: even", low=0.0)
    combine: str = knob("probabilities", "what is averaged", choices=("probabilities", "logits", "losses"))
    temperature: float = knob(4.0, "softens all distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(0.1, "weight of the cross-entropy with the labels", low=0.0, high=2.0)
    kd_weight: float = knob(0.9, "weight of the distillation term", low=0.0, high=20.0)

    def __post_init__(self) -> None:
        if self.weights and not sum(self.weights) > 0:
            raise ValueError("weights: at least one teacher must have a weight above 0")

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        further = tuple(role for role in roles if re.fullmatch(r"teacher\d+", role)) or ("teacher2",)
        return Plan(stages=(Stage({"student": self._weighed(("teacher", *further))}),))

    def _weighed(self, teachers: tuple[str, ...]) -> tuple[str, ...]:
        if self.weights and len(self.weights) != len(teachers):
            listed = ", ".join(teachers)
            raise Refusal(f"multi_kd has {len(self.weights)} weights for {len(teachers)} teachers ({listed})")
        return teachers

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        self._weighed(tuple(teachers))  # a wrapper around may have another plan
        return nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        kd = self._distance(learner.rows, [t.rows for t in teachers.values()])
        return {"ce": self.ce_weight * supervised(learner, batch), "multi_kd": self.kd_weight * kd}

    def _distance(self, rows_s: Tensor, rows: list[Tensor]) -> Tensor:
        if not rows:
            return mean_of([])  # raises, as every method does
        given = self.weights or (1.0,) * len(rows)
        weights = [a / sum(given) for a in given]
        if self.combine == "losses":
            terms = [a * soft_kl(rows_s, z, self.temperature) for z, a in zip(rows, weights, strict=True)]
            return torch.stack(terms).sum()
        if self.combine == "logits":
            mean = torch.stack([a * wide(z) for z, a in zip(rows, weights, strict=True)]).sum(0)
            return soft_kl(rows_s, mean, self.temperature)
        # Logits of which q is the softened distribution: T ln q.
        return soft_kl(rows_s, self.temperature * log_average(rows, weights, self.temperature), self.temperature)

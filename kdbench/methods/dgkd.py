"""Densely Guided Knowledge Distillation using Multiple Teacher Assistants (DGKD).

W. Son, J. Na, J. Choi, W. Hwang. ICCV 2021.

    teacher -> ta;  teacher, ta -> ta2;  ...;  all of them -> student: one stage each
    L = w_ce CE + w_kd mean over the kept teachers k of T^2 mean_b KL(softmax(z_k / T) || softmax(z_s / T))

Each network learns from all larger ones before it. In every step each teacher is kept with probability `survival`
(where none is left, all are): the paper's stochastic form, as regularisation. Assistants are the pair's roles `ta`,
`ta2`, ..., in the order in which it lists them. `share` as in `chain`, which teaches by the last one alone. T and
weights are those of `kd`; survival 0.75 is from memory of the paper. Deviation: the mean over teachers, not the sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import nn, torch
from kdbench.losses import mean_of, soft_kl, supervised
from kdbench.method import Method, Needs, Paper, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor


def kept_mean(terms_K: Tensor, kept_K: Tensor) -> Tensor:
    """Mean of the terms whose `kept` is 1, of all where none is; scalar."""
    kept_K = torch.where(kept_K.sum() > 0, kept_K, torch.ones_like(kept_K))
    return (kept_K * terms_K).sum() / kept_K.sum()


@dataclass(frozen=True)
class DGKD(Method):
    """Dense guidance: every assistant and the student learn from all before them (Son et al. 2021)."""

    family = "several teachers"
    paper = Paper("Densely Guided Knowledge Distillation using Multiple Teacher Assistants", "ICCV", 2021, "2009.08825")

    survival: float = knob(0.75, "probability with which a teacher takes part in a step", low=0.0, high=1.0)
    share: float = knob(1.0, "epochs of each stage, as a share of the recipe's", low=0.05, high=2.0)
    temperature: float = knob(4.0, "softens all distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(0.1, "weight of the cross-entropy with the labels", low=0.0, high=2.0)
    kd_weight: float = knob(0.9, "weight of the distillation term", low=0.0, high=20.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        assistants = [role for role in roles if re.fullmatch(r"ta\d*", role)] or ["ta"]
        line = ("teacher", *assistants, "student")
        return Plan(stages=tuple(Stage({line[i]: line[:i]}, self.share) for i in range(1, len(line))))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        terms = [soft_kl(learner.rows, t.rows, self.temperature) for t in teachers.values()]
        term = mean_of(terms)
        if len(terms) > 1:
            kept_K = torch.rand(len(terms), generator=batch.rng, device=batch.rng.device) < self.survival
            term = kept_mean(torch.stack(terms), kept_K.to(terms[0].dtype))
        return {"ce": self.ce_weight * supervised(learner, batch), "dgkd": self.kd_weight * term}

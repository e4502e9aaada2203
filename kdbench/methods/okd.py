"""Exploring and Enhancing the Transfer of Distribution in Knowledge Distillation for Autoregressive Language Models.

J. Rao et al. arXiv 2409.12512, 2024 (online knowledge distillation, OKD); here on class probabilities.

    tutor = the trained teacher, frozen, + low-rank adapters:  W + s up down,  up = 0 at first
    student    L = T^2 KL(p_tutor || p_s)
    tutor      L = alpha T^2 KL(p_s || p_tutor) + (1 - alpha) CE(y, p_tutor)        its adapters alone learn

p = softmax(z / T), z logits (B, C); each term takes the other's answer as it is, from the same forward pass, and both
are updated at once: the teacher's distribution moves towards what the student can fit. No label reaches the student
but through the tutor. T = 1 and rank 32 are the paper's; alpha is not stated there: 0.5 is ours, and so is s = 1.
With adapters that do not learn it is KD's divergence alone, but for rounding. Deviations: the paper adapts the
queries and values of attention, here every linear layer and convolution has an adapter; whatever the teacher does in
training only (dropout, statistics of batches) stays off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import mean_of, soft_kl, supervised
from kdbench.method import Method, Needs, Paper, Plan, Prepared, Rates, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor, nn

TUTOR = "tutor"


@dataclass(frozen=True)
class OKD(Method):
    """Online distillation: the teacher's adapters learn with the student (Rao et al. 2024)."""

    family = "online"
    paper = Paper(
        "Exploring and Enhancing the Transfer of Distribution in Knowledge Distillation for Autoregressive Language "
        "Models",
        "",
        2024,
        "2409.12512",
    )

    temperature: float = knob(1.0, "softens both distributions", low=1.0, high=20.0, log=True)
    alpha: float = knob(0.5, "share of the student's answer in what the tutor learns", low=0.0, high=0.95)
    rank: int = knob(32, "of the adapters, at most a weight's own", low=1, high=256, log=True)
    scale: float = knob(1.0, "s, of the adapters", low=0.1, high=10.0, log=True)
    adapter_lr: float = knob(1.0, "learning rate of the adapters, relative to the recipe's", low=0.0, high=10.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        taught = Stage({"student": (TUTOR,), TUTOR: ("student",)})
        return Plan((taught,), copies={TUTOR: "teacher"}, started=(TUTOR,))

    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> Prepared:
        from kdbench.methods._adapters import adapted

        if role != TUTOR:
            return Prepared(model)
        return Prepared(adapted(model, self.rank, self.scale), {"*": Rates(lr=self.adapter_lr, decay=0.0)})

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        kl = mean_of(soft_kl(learner.rows, other.rows, self.temperature) for other in teachers.values())
        if learner.role != TUTOR:
            return {"okd": kl}
        return {"ce": (1 - self.alpha) * supervised(learner, batch), "okd": self.alpha * kl}

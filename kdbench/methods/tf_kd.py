"""Revisiting Knowledge Distillation via Label Smoothing Regularization (Tf-KD, teacher-free).

L. Yuan, F. E. H. Tay, G. Li, T. Wang, J. Feng. CVPR 2020.

    virtual     u_y = a, u_c = (1 - a) / (C - 1) elsewhere;    q ~ u^(1 / T)
                L = (1 - alpha) CE + alpha T^2 mean_b KL(q || softmax(z / T))
    self        pretrained <- labels, then student <- pretrained by the same L, with q = softmax(z_pretrained / T)

z logits (B, C). The virtual teacher is always right, with a = 0.99; the other one is the student's own model with other
initial weights, trained before (twice the cost). alpha 0.1 and T 20 are the released values. No teacher of the pair is
used. `as_released` (virtual form): q = softmax(u / T), of probabilities and so all but uniform, the student at T = 1,
KL averaged over B * C and multiplied by 100 instead of T^2. One-hot targets are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import torch
from kdbench.losses import kl_rows, log_probabilities, mean_of, soft_kl, supervised, wide
from kdbench.method import Method, Needs, Paper, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor, nn

MULTIPLIER = 100.0  # the released code's


def virtual(rows_RC: Tensor, labels_R: Tensor, correct: float) -> Tensor:
    """ln u: `correct` for the label, the rest evenly over the other classes; (R, C)."""
    rest = math.log((1 - correct) / max(rows_RC.shape[1] - 1, 1))
    return torch.full_like(wide(rows_RC), rest).scatter(1, labels_R[:, None], math.log(correct))


def released(rows_RC: Tensor, labels_R: Tensor, correct: float, temperature: float) -> Tensor:
    """100 mean_rc of the divergence from softmax(u / T); scalar."""
    q = log_probabilities(virtual(rows_RC, labels_R, correct).exp(), temperature)
    return MULTIPLIER * kl_rows(q, log_probabilities(rows_RC)).mean() / rows_RC.shape[1]


@dataclass(frozen=True)
class TfKD(Method):
    """Teacher-free: a virtual teacher that is always right, or the student's own model (Yuan et al. 2020)."""

    family = "self-distillation"
    paper = Paper("Revisiting Knowledge Distillation via Label Smoothing Regularization", "CVPR", 2020, "1909.11723")

    form: str = knob("virtual", "who teaches", choices=("virtual", "self"))
    alpha: float = knob(0.1, "weight of the distillation; the labels' is 1 - alpha", low=0.0, high=1.0)
    temperature: float = knob(20.0, "softens both distributions", low=1.0, high=40.0, log=True)
    correct: float = knob(0.99, "the virtual teacher's probability of the label", low=0.5, high=0.999)
    as_released: bool = knob(False, "the released code's virtual form: see the documentation")

    def __post_init__(self) -> None:
        if self.as_released and self.form == "self":
            raise ValueError("as_released is of the virtual form: remove it, or `form: self`")

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        if self.form == "virtual":
            return Plan(stages=(Stage({"student": ()}),))
        stages = (Stage({"pretrained": ()}), Stage({"student": ("pretrained",)}))
        return Plan(stages, copies={"pretrained": "student"})

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        ce, rows = supervised(learner, batch), learner.rows
        if self.form == "self" and learner.role == "pretrained":
            return {"ce": ce}
        if self.form == "self":
            kl = mean_of(soft_kl(rows, t.rows, self.temperature) for t in teachers.values())
        elif self.as_released:
            kl = released(rows, batch.labels, self.correct, self.temperature)
        else:
            kl = soft_kl(rows, virtual(rows, batch.labels, self.correct), self.temperature)
        return {"ce": (1 - self.alpha) * ce, "tf_kd": self.alpha * kl}

"""Regularizing Class-wise Predictions via Self-knowledge Distillation (CS-KD).

S. Yun, J. Park, K. Lee, J. Shin. CVPR 2020.

    L = CE + lambda T^2 mean_b mean_b' KL(softmax(z_b' / T) || softmax(z_b / T))        y_b' = y_b, b' not b

z logits (B, C); z_b' has no gradient. Predictions of one class are drawn together, without a teacher. lambda 1 (3 on
fine-grained sets) and T 4 are the released values.

The paper draws one partner x' for each example and forwards it as well. Here an example's partners are all those of its
class in the same batch, which is the mean over that draw within the batch, and costs no further pass; an example alone
in its class has no partner and counts in no mean. With many classes give the recipe large batches: of 100 even classes,
64 examples leave half alone, 256 one in thirteen. One-hot targets are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import torch
from kdbench.losses import full_precision, log_probabilities, supervised
from kdbench.method import Method, Needs, Paper, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def class_wise(rows_RC: Tensor, labels_R: Tensor, temperature: float) -> Tensor:
    """T^2 mean over rows with partners of the mean over their partners of KL(partner || row); nats, scalar."""
    log_RC = log_probabilities(rows_RC, temperature)
    said_RC = log_RC.detach()
    with full_precision(log_RC):
        entropy_R = (said_RC.exp() * said_RC).sum(1)
        kl_RP = entropy_R - log_RC @ said_RC.exp().T  # of row r and partner p
    same_RP = (labels_R[:, None] == labels_R).to(kl_RP.dtype)
    same_RP = same_RP - torch.diag_embed(same_RP.diagonal())
    partners_R = same_RP.sum(1)
    mean_R = (same_RP * kl_RP).sum(1) / partners_R.clamp_min(1)
    return temperature**2 * mean_R.sum() / (partners_R > 0).sum().clamp_min(1)


@dataclass(frozen=True)
class CSKD(Method):
    """Class-wise self-distillation: examples of one class agree, without a teacher (Yun et al. 2020)."""

    family = "self-distillation"
    paper = Paper("Regularizing Class-wise Predictions via Self-knowledge Distillation", "CVPR", 2020, "2003.13964")

    weight: float = knob(1.0, "lambda, of the class-wise term", low=0.01, high=10.0, log=True)
    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan(stages=(Stage({"student": ()}),))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        term = class_wise(learner.rows, batch.labels, self.temperature)
        return {"ce": supervised(learner, batch), "cs_kd": self.weight * term}

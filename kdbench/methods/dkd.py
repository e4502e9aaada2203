"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu & Liang, CVPR 2022).

    L = CE + min(epoch / warm-up, 1) * (alpha TCKD + beta NCKD),   epoch counted from 1
    TCKD = T^2 mean_b KL over (p_y, 1 - p_y);   NCKD = T^2 mean_b KL over the classes other than y

KD is TCKD + (1 - p_t,y) NCKD for each example: KD couples the two by the teacher's confidence, DKD does not.
Defaults are mdistiller's for CIFAR (beta = 2, 6 or 8 by pair there; 8 is resnet32x4 -> resnet8x4's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F, torch
from kdbench.losses import cross_entropy
from kdbench.method import Method, Needs, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def dkd_terms(logits_s_BC: Tensor, logits_t_BC: Tensor, labels_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD) of each example, (B,) both, times T^2."""
    target_B1 = labels_B[:, None]
    target_BC = torch.arange(logits_s_BC.shape[1], device=labels_B.device) == target_B1

    def split(logits_BC: Tensor) -> tuple[Tensor, Tensor]:
        scaled_BC = logits_BC / temperature
        others_BC = scaled_BC.masked_fill(target_BC, float("-inf"))
        # ln p_y and ln (1 - p_y), the second as a log-sum over the other classes: exact for confident teachers too.
        whole_B1 = scaled_BC.logsumexp(dim=1, keepdim=True)
        binary_B2 = torch.cat([scaled_BC.gather(1, target_B1), others_BC.logsumexp(dim=1, keepdim=True)], dim=1)
        return binary_B2 - whole_B1, F.log_softmax(others_BC, dim=1).masked_fill(target_BC, 0.0)

    (binary_s, others_s), (binary_t, others_t) = split(logits_s_BC), split(logits_t_BC)
    tckd_B = (binary_t.exp() * (binary_t - binary_s)).sum(dim=1)
    p_t_BC = others_t.exp().masked_fill(target_BC, 0.0)
    return temperature**2 * tckd_B, temperature**2 * (p_t_BC * (others_t - others_s)).sum(dim=1)


@dataclass(frozen=True)
class DKD(Method):
    """Target-class and non-target-class knowledge, weighted apart."""

    alpha: float = knob(1.0, "weight of the target class's part", low=0.0, high=4.0)
    beta: float = knob(8.0, "weight of the other classes' part", low=0.1, high=16.0, log=True)
    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(1.0, "weight of the labels", low=0.0, high=2.0)
    warmup_epochs: int = knob(20, "epochs over which the distillation term rises", low=0, high=100)

    def needs(self) -> Needs:
        return Needs(hard_labels=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        rise = min((batch.epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        parts = [
            dkd_terms(learner.logits_BC, teacher.logits_BC, batch.labels_B, self.temperature)
            for teacher in teachers.values()
        ]
        terms = [self.alpha * tckd_B.mean() + self.beta * nckd_B.mean() for tckd_B, nckd_B in parts]
        ce = self.ce_weight * cross_entropy(learner.logits_BC, batch.targets_BC)
        return {"ce": ce, "dkd": rise * torch.stack(terms).mean()}

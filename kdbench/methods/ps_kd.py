"""Self-Knowledge Distillation with Progressive Refinement of Targets (PS-KD).

K. Kim, B. Ji, D. Yoon, S. Hwang. ICCV 2021.

    alpha_e = alpha (e + 1) / E        L = (1 - alpha_e) CE(y, p) + alpha_e CE(m, p)

p = softmax(z), z logits (B, C); m is the student's own p of the same example when it last saw it, in general one epoch
before, and the label until then: the first epoch is plain cross-entropy. The memory (N, C) is part of the heads and of
checkpoints. alpha 0.8 is the paper's. An example is remembered under the augmentation that it was seen with, as
released. No teacher is used. One row for each example and one-hot targets are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import cross_entropy, log_probabilities, supervised
from kdbench.method import Method, Needs, Paper, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor


def remembered(memory_RC: Tensor, targets_RC: Tensor) -> Tensor:
    """Rows of the memory; the target where there is none yet (a row of zeros)."""
    return memory_RC + (1 - memory_RC.sum(1, keepdim=True)) * targets_RC


@dataclass(frozen=True)
class PSKD(Method):
    """Progressive self-distillation: labels softened by the student's own past answers (Kim et al. 2021)."""

    family = "self-distillation"
    paper = Paper("Self-Knowledge Distillation with Progressive Refinement of Targets", "ICCV", 2021, "2006.12000")

    alpha: float = knob(0.8, "share of the past answers in the last epoch", low=0.0, high=1.0)

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan(stages=(Stage({"student": ()}),))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        heads = nn.Module()
        heads.register_buffer("memory_NC", torch.zeros(learner.examples, learner.classes))
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        past_BC, now_BC = heads.memory_NC[batch.index_B], log_probabilities(learner.rows.detach()).exp()
        share = self.alpha * (batch.epoch + 1) / batch.epochs
        term = cross_entropy(learner.rows, remembered(past_BC, batch.targets.dense(past_BC.dtype)))
        heads.memory_NC.index_copy_(0, batch.index_B, now_BC)
        return {"ce": (1 - share) * supervised(learner, batch), "ps_kd": share * term}

"""Label smoothing (Szegedy et al., "Rethinking the Inception architecture", CVPR 2016). A control without a teacher.

    L = (1 - eps) CE(y, p) + eps CE(u, p),   u uniform over all C classes

Tf-KD's variant spreads eps over the other C - 1 classes; this is the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import cross_entropy
from kdbench.method import Method, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def smoothed(targets_BC: Tensor, epsilon: float) -> Tensor:
    """(1 - eps) y + eps / C, (B, C)."""
    return (1 - epsilon) * targets_BC + epsilon / targets_BC.shape[1]


@dataclass(frozen=True)
class LabelSmoothing(Method):
    """Cross-entropy with smoothed labels."""

    epsilon: float = knob(0.1, "mass spread over all classes", low=0.0, high=0.9)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan((Stage({"student": ()}),))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        return {"ce": cross_entropy(learner.logits_BC, smoothed(batch.targets_BC, self.epsilon))}

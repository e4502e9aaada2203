"""Rethinking the Inception Architecture for Computer Vision.

C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna. CVPR 2016, section 7.

    y' = (1 - eps) y + eps / C        L = CE(y', softmax(z_s)) = (1 - eps) CE(y, .) + eps CE(uniform, .)

A control: what a fixed, uniform "teacher" already gives. (Tf-KD's variant spreads eps over the C - 1 other classes.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import cross_entropy
from kdbench.method import Method, Needs, Paper, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LabelSmoothing(Method):
    """Label smoothing: the student without a teacher, on softened labels (control; Szegedy et al. 2016)."""

    family = "controls"
    paper = Paper("Rethinking the Inception Architecture for Computer Vision", "CVPR", 2016, "1512.00567")

    epsilon: float = knob(0.1, "share of the label spread evenly over all classes", low=0.0, high=0.5)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan(stages=(Stage({"student": ()}),))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        return {"ce": cross_entropy(learner.rows, batch.targets.smoothed(self.epsilon))}

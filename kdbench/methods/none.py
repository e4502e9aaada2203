"""The floor of every table: the student alone, trained on the labels.

    L = CE(y, softmax(z_s))

A control (protocol, rule 5): gains are measured against it, paired by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import supervised
from kdbench.method import Method, Plan, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class NoTeacher(Method):
    """The student without a teacher (control)."""

    family = "controls"

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan(stages=(Stage({"student": ()}),))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        return {"ce": supervised(learner, batch)}

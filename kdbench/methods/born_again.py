"""Born-Again Neural Networks (BAN).

T. Furlanello, Z. C. Lipton, M. Tschannen, L. Itti, A. Anandkumar. ICML 2018.

    generation0 <- labels,    generation1 <- generation0,    ...,    student <- the one before it

All generations are the student's model with initial weights of their own; the pair's teacher is not used, so this is
self-distillation, a control that separates a good teacher from KD as a regulariser. Each generation takes the recipe's
epochs. With 0 generations the student learns from the labels alone. Default inside: KD with T = 1 and weights 1 / 1
(the paper's "BAN + L"). Deviation: no ensemble of the generations.

A learner without teachers never reaches the wrapped method: it has no heads, and its loss is the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn
from kdbench.losses import supervised
from kdbench.method import Method, Paper, Plan, Prepared, Stage, Wrapper, knob
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BornAgain(Wrapper):
    """Born-again: a student teaches its successor of the same architecture (control; Furlanello et al. 2018)."""

    family = "self-distillation"
    paper = Paper("Born-Again Neural Networks", "ICML", 2018, "1805.04770")

    over: Method = KD(temperature=1.0, ce_weight=1.0, kd_weight=1.0)
    generations: int = knob(1, "networks trained before the student, each the teacher of the next", low=0, high=10)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        line = (*(f"generation{number}" for number in range(self.generations)), "student")
        taught = tuple(Stage({learner: (teacher,)}) for teacher, learner in pairwise(line))
        return Plan(stages=(Stage({line[0]: ()}), *taught), copies=dict.fromkeys(line[:-1], "student"))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module | Prepared:
        return self.over.heads(learner, teachers) if teachers else nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        if not teachers:
            return {"ce": supervised(learner, batch)}
        return self.over.loss(learner, teachers, batch, heads)

"""Born-again networks (Furlanello, Lipton, Tschannen, Itti & Anandkumar, ICML 2018).

    generation 0 <- labels alone;   generation g <- generation g - 1 with the wrapped method;   the last is the student

All generations have the student's architecture and initial weights of their own; the pair's teacher is not used. So it
separates the quality of a teacher from distillation as a regulariser. With 0 generations it is plain training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn
from kdbench.losses import cross_entropy
from kdbench.method import Method, Plan, Stage, Wrapper, knob
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BornAgain(Wrapper):
    """A student learns from its own kind."""

    over: Method = KD(temperature=1.0, ce_weight=1.0, kd_weight=1.0)
    generations: int = knob(1, "how often a generation teaches the next", low=0, high=10)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        line = [*(f"generation{g}" for g in range(self.generations)), "student"]
        first = Stage({line[0]: ()})
        later = [Stage({learner: (teacher,)}) for teacher, learner in itertools.pairwise(line)]
        return Plan((first, *later), copies=dict.fromkeys(line[:-1], "student"))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        return self.over.heads(learner, teachers) if teachers else nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        if not teachers:
            return {"ce": cross_entropy(learner.logits_BC, batch.targets_BC)}
        return self.over.loss(learner, teachers, batch, heads)

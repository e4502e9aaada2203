"""Progressive distillation: students of growing size, each trained on what its predecessors left.

Mamba base PKD for efficient knowledge compression. ACM SAC 2025, poster (arXiv 2503.01727). Its code, students and
exact rule are not public, so this form is ours:

    stages weak_k <- teacher, weak_1 .. weak_{k-1}:    F_k = F_{k-1}.detach() + f_k,    F_0 = 0
    L = alpha CE(y, softmax(F_k)) + (1 - alpha) L_over(F_k, teacher)

L_over is the whole loss of the wrapped method, given F_k for the student's logits; by default T^2 KL(teacher || F_k)
with T = 4. (A wrapped `kd` written out has the defaults of `kd`: give it `ce_weight: 0, kd_weight: 1`.) Any prefix of
the summed students is an answer. Students start as F_{k-1}: their classifiers are zero for k > 1. Students are the
pair's roles `weak1`, `weak2`, ...: its `ladder`. With alpha = 1 no teacher is used. Arms:

- residual: the above.
- independent: weak_k <- teacher alone, logits averaged: an ensemble without the progressive part.
- control: one student, the pair's role `control`, by the same loss: give it the MACs of the group.
- bdistil: D. K. Dennis et al., NeurIPS 2023 (arXiv 2302.10093), see _bdistil.py: examples drawn by K+ + K-, no
  labels, logits averaged. A student that misses the weak-learning condition stays in the answer, with a sentence in the
  result: the next rung of the ladder is the larger class that the paper asks for. One search a round, no restarts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from kdbench.batch import Batch, Out, Probe, Profile, Review
from kdbench.lazy import nn, torch
from kdbench.losses import supervised, wide
from kdbench.method import Method, Needs, Paper, Plan, Prepared, Stage, Wrapper, knob
from kdbench.methods import _bdistil as bdistil
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor

Said = TypeVar("Said")
SOFT = KD(temperature=4.0, ce_weight=0.0, kd_weight=1.0)


def weak(role: str) -> bool:
    """Whether a role is a student of the ensemble: weak1, weak2, ..."""
    return re.fullmatch(r"weak\d+", role) is not None


def split(teachers: Mapping[str, Said]) -> tuple[dict[str, Said], dict[str, Said]]:
    """Teachers proper, and predecessors."""
    above = {role: said for role, said in teachers.items() if not weak(role)}
    return above, {role: said for role, said in teachers.items() if weak(role)}


def added(learner: Out, before: Mapping[str, Out]) -> Out:
    """The learner as part of the sum: its logits are F_k, without gradient to the predecessors; views alike."""
    logits_BC = learner.rows
    for out in before.values():
        logits_BC = logits_BC + out.rows.detach()
    views = tuple(
        added(view, {role: out.views[number] for role, out in before.items()})
        for number, view in enumerate(learner.views)
    )
    return dataclasses.replace(learner, rows=logits_BC, views=views)


@dataclass(frozen=True)
class Progressive(Wrapper):
    """Progressive ensemble: each weak student learns what its predecessors left (Mamba base PKD, 2025)."""

    family = "several students"
    paper = Paper("Mamba base PKD for efficient knowledge compression", "ACM SAC", 2025, "2503.01727")

    extends: ClassVar[tuple[str, ...]] = ("loss", "sample")

    over: Method = SOFT
    alpha: float = knob(0.5, "weight of the labels; the wrapped method's is 1 - alpha", low=0.0, high=1.0)
    arm: str = knob(
        "residual", "how students make one answer", choices=("residual", "independent", "control", "bdistil")
    )
    share: float = knob(1.0, "epochs of each student, as a share of the recipe's", low=0.05, high=4.0)
    rate: float = knob(1.0, "arm bdistil: step of the weights, relative to the theory's", low=0.01, high=100, log=True)

    def __post_init__(self) -> None:
        if self.arm == "bdistil" and self.over != SOFT:
            raise ValueError("arm: bdistil has a loss of its own: remove `over`, or put the other method around this")

    # declare ---------------------------------------------------------------------------------------------------------
    def needs(self) -> Needs:
        return Needs(probe=True, categorical=True) if self.arm == "bdistil" else self.over.needs()

    def plan(self, roles: tuple[str, ...]) -> Plan:
        teacher = () if self.alpha == 1 and self.arm != "bdistil" else ("teacher",)
        if self.arm == "control":
            return Plan((Stage({"control": teacher}, self.share),), answer=("control",))
        students = tuple(role for role in roles if weak(role)) or ("weak1",)
        before = () if self.arm == "independent" else students
        stages = tuple(Stage({role: (*teacher, *before[:k])}, self.share) for k, role in enumerate(students))
        return Plan(stages, answer=students, combine="sum" if self.arm == "residual" else "mean")

    # model -----------------------------------------------------------------------------------------------------------
    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> nn.Module | Prepared:
        above, before = split(teachers)
        if before and self.arm == "residual":
            for parameter in model.get_submodule(str(model.kd_classifier)).parameters():
                nn.init.zeros_(parameter)
        return self.over.prepare(model, role, above)

    # data ------------------------------------------------------------------------------------------------------------
    def sample(self, probe: Probe) -> Tensor | None:
        if self.arm != "bdistil" or probe.heads is None:
            return self.over.sample(probe)
        return _weights(probe.heads).examples_N

    # signal ----------------------------------------------------------------------------------------------------------
    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module | Prepared:
        above, before = split(teachers)
        if self.arm != "bdistil":
            return self.over.heads(learner, above) if above else nn.Module()
        heads = nn.Module()
        teacher_NC = next(iter(above.values())).rows_NC
        assert teacher_NC is not None  # Needs.probe
        errors_NC = torch.zeros_like(teacher_NC)
        for profile in before.values():
            assert profile.rows_NC is not None
            errors_NC = errors_NC + (profile.rows_NC - teacher_NC)
        bound = 2 * teacher_NC.abs().amax()
        eta = self.rate * bdistil.step_size(learner.examples, learner.answers, bound)
        plus_NC, minus_NC = bdistil.weights(errors_NC, eta)
        memory = {"plus_NC": plus_NC, "minus_NC": minus_NC, "teacher_NC": teacher_NC, "bound": bound}
        for name, value in memory.items():  # they follow from frozen roles: nothing to keep in checkpoints
            heads.register_buffer(name, value, persistent=False)
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        above, before = split(teachers)
        if self.arm == "bdistil":
            return {"bdistil": self._barrier(learner, above, batch, heads)}
        learner = added(learner, before)
        ce = self.alpha * supervised(learner, batch)
        if not above:  # alpha = 1
            return {"ce": ce}
        inner = self.over.loss(learner, above, batch, heads)
        terms = {name: (1 - self.alpha) * term for name, term in inner.items()}
        return {**terms, "ce": ce + terms["ce"] if "ce" in terms else ce}

    def _barrier(self, learner: Out, above: Mapping[str, Out], batch: Batch, heads: nn.Module) -> Tensor:
        """Of examples drawn by their weights: each stands for the shares of its classes and signs in its own."""
        (teacher,) = above.values()
        given = bdistil.Weights(*(memory[batch.index_B] for memory in _weights(heads)))
        share_B1 = given.examples_N[:, None].clamp_min(torch.finfo(given.plus_NC.dtype).tiny)
        errors_BC = wide(learner.rows) - wide(teacher.rows)
        classes = errors_BC.shape[1]
        return classes * bdistil.barrier(
            given.plus_NC / share_B1, given.minus_NC / share_B1, errors_BC, heads.get_buffer("bound")
        )

    # records ---------------------------------------------------------------------------------------------------------
    def review(self, probe: Probe) -> Review:
        """The edges of a weak learner on the whole training set, as a mean and least over classes.

        In the first round K+ = K-, so that nobody can have both edges: there the condition says nothing.
        """
        if self.arm != "bdistil" or probe.heads is None:
            return self.over.review(probe)
        errors_NC = probe.rows_NC - _memory(probe.heads).get_buffer("teacher_NC")
        given = _weights(probe.heads)
        plus_C, minus_C = bdistil.edges(given, errors_NC)
        met, classes = round(float(((plus_C > 0) & (minus_C > 0)).sum())), len(plus_C)
        values = {
            "edge": float((plus_C + minus_C).mean()),
            "least_edge_plus": float(plus_C.amin()),
            "least_edge_minus": float(minus_C.amin()),
            "weak_classes": float(met),
        }
        if met == classes or torch.equal(given.plus_NC, given.minus_NC):
            return Review(values)
        sentence = f"{probe.role} meets the weak-learning condition of B-DISTIL in {met} of {classes} classes"
        return Review(values, (f"{sentence}: it is too small for the others, or trained too briefly",))


def _memory(heads: nn.Module) -> nn.Module:
    """The module with the game's memory: `heads`, or inside those of a wrapper around."""
    return next(module for module in heads.modules() if "plus_NC" in dict(module.named_buffers(recurse=False)))


def _weights(heads: nn.Module) -> bdistil.Weights:
    memory = _memory(heads)
    return bdistil.Weights(memory.get_buffer("plus_NC"), memory.get_buffer("minus_NC"))

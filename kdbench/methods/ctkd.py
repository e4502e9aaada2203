"""Curriculum Temperature for Knowledge Distillation (CTKD).

Z. Li, X. Li, L. Yang, B. Zhao, R. Song, L. Luo, J. Li, J. Yang. AAAI 2023.

    T = 1 + 20 sigmoid(theta)        L = CE(y, softmax(z_s)) + T^2 L_over(z_s / T, z_t / T)

theta is one learnt number, 1 at first (T = 15.6), whose gradient is multiplied by lambda <= 0: it climbs where the
student descends, so that the task grows harder. lambda goes by a cosine from 0 to -1 in the first 10 epochs and stays:
lambda(e) = -(1 - cos(pi min(e, 10) / 10)) / 2 in epoch e = 1, 2, ... The whole T^2 L_over, not the wrapped method's
cross-entropy, is divided by and raised with T, as released; so the method inside must have temperature 1. Default
inside: KD with weights 0.1 / 0.9. This is the paper's global temperature (not one for each example). theta is trained
by the student's optimiser, weight decay included. Views have the same T.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import wide
from kdbench.method import Method, Needs, Paper, Prepared, Wrapper, chain, knob
from kdbench.methods.kd import KD
from kdbench.methods.ls import LS, through

if TYPE_CHECKING:
    from torch import Tensor


def reversed_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by `factor`."""
    return x.detach() + factor * (x - x.detach())


def curriculum(epoch: int, epochs: int) -> float:
    """lambda in an epoch that counts from 0: by a cosine from 0 to -1 at the end of `epochs`, then -1."""
    return -(1 - math.cos(math.pi * min((epoch + 1) / epochs, 1.0))) / 2


@dataclass(frozen=True)
class CTKD(Wrapper):
    """Curriculum temperature: learnt against the student, for whatever logit method it wraps (Li et al. 2023)."""

    family = "logits"
    paper = Paper("Curriculum Temperature for Knowledge Distillation", "AAAI", 2023, "2211.16231")

    extends: ClassVar[tuple[str, ...]] = ("loss",)

    over: Method = KD(temperature=1.0, ce_weight=0.1, kd_weight=0.9)
    start: float = knob(1.0, "T begins at 1 + span sigmoid(start)", low=-4.0, high=4.0)
    span: float = knob(20.0, "T is between 1 and 1 + span", low=1.0, high=40.0)
    curriculum_epochs: int = knob(10, "epochs until the gradient is wholly reversed", low=1, high=240)

    def __post_init__(self) -> None:
        inside = [method for _, method in chain(self.over)]
        if any(isinstance(method, LS) for method in inside):
            raise ValueError("ls inside would undo every temperature: put it around ctkd")
        if any(getattr(method, "temperature", 1.0) != 1.0 for method in inside):
            raise ValueError("ctkd learns the temperature: give the method inside `temperature: 1`")

    def needs(self) -> Needs:
        return dataclasses.replace(self.over.needs(), categorical=True)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> Prepared:
        heads, inner = nn.Module(), Prepared.of(self.over.heads(learner, teachers))
        heads.over = inner.model
        heads.theta = nn.Parameter(torch.tensor(float(self.start)))
        return Prepared(heads, inner.within("over"))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        theta = reversed_gradient(heads.theta, curriculum(batch.epoch, self.curriculum_epochs))
        temperature = 1 + self.span * torch.sigmoid(theta)
        terms = through(lambda rows: wide(rows) / temperature, self.over, learner, teachers, batch, heads.over)
        return {name: term if name == "ce" else temperature**2 * term for name, term in terms.items()}

    def deploy(self, model: nn.Module, heads: Any) -> nn.Module:
        return self.over.deploy(model, heads.over)

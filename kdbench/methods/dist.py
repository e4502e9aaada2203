"""Knowledge Distillation from A Stronger Teacher.

T. Huang, S. You, F. Wang, C. Qian, C. Xu. NeurIPS 2022.

    L = w_ce CE + w tau^2 [ beta (1 - mean_b rho(p_s[b, :], p_t[b, :])) + gamma (1 - mean_c rho(p_s[:, c], p_t[:, c])) ]

rho is Pearson's correlation, p = softmax(z / tau), z logits (B, C): rows compare classes of an example, columns
compare examples of a class. Defaults are the released CIFAR-100 values; tau = 1 on ImageNet. A correlation over one
class is undefined: C = 1 raises. A constant row or column (a batch of one, for example) counts as uncorrelated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-8  # the released code's


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim`; 0 where one of them is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + EPS)


def dist_loss(logits_s_BC: Tensor, logits_t_BC: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """tau^2 (beta (1 - row correlation) + gamma (1 - column correlation)); scalar. Raises ValueError for C = 1."""
    if logits_s_BC.shape[1] < 2:
        raise ValueError("dist correlates over classes and needs two or more")
    p_s_BC, p_t_BC = (F.softmax(wide(z) / temperature, dim=1) for z in (logits_s_BC, logits_t_BC))
    inter = 1 - pearson(p_s_BC, p_t_BC, dim=1).mean()
    intra = 1 - pearson(p_s_BC, p_t_BC, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


@dataclass(frozen=True)
class DIST(Method):
    """Correlation of predictions over classes and over examples (Huang et al. 2022)."""

    family = "logits"
    paper = Paper("Knowledge Distillation from A Stronger Teacher", "NeurIPS", 2022, "2205.10536")

    weight: float = knob(2.0, "weight of the correlation term", low=0.0, high=10.0)
    beta: float = knob(1.0, "weight of the correlation over classes", low=0.0, high=4.0)
    gamma: float = knob(1.0, "weight of the correlation over examples", low=0.0, high=4.0)
    temperature: float = knob(4.0, "tau, softens both distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        if learner.classes < 2:
            raise Refusal("dist correlates over classes and needs two or more; this data set has one")
        return nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        dist = mean_of(
            dist_loss(learner.rows, t.rows, self.temperature, self.beta, self.gamma) for t in teachers.values()
        )
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "dist": self.weight * dist,
        }

"""DIST, "Knowledge distillation from a stronger teacher" (Huang, You, Wang, Qian & Xu, NeurIPS 2022).

    L = w_ce CE + w tau^2 [beta (1 - mean_b rho(p_s,b , p_t,b)) + gamma (1 - mean_c rho(p_s,.c , p_t,.c))]

rho is Pearson's correlation of the softened probabilities: over the classes of an example (inter-class), and over the
examples of a batch for a class (intra-class). Defaults are the paper's for CIFAR-100: tau = 4, w_ce = 1, w = 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import F, torch
from kdbench.losses import cross_entropy
from kdbench.method import Method, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over the last dimension, (..., n) x (..., n) -> (...); 0 where one side is constant."""
    return F.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1, eps=1e-8)


def dist_loss(logits_s_BC: Tensor, logits_t_BC: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """tau^2 times the two parts: a scalar.

    Raises:
        Refusal: a single class, whose correlations are undefined.
    """
    if logits_s_BC.shape[1] < 2:
        raise Refusal("dist correlates classes and needs at least two of them")
    p_s_BC, p_t_BC = F.softmax(logits_s_BC / temperature, dim=1), F.softmax(logits_t_BC / temperature, dim=1)
    inter, intra = 1 - pearson(p_s_BC, p_t_BC).mean(), 1 - pearson(p_s_BC.t(), p_t_BC.t()).mean()
    return temperature**2 * (beta * inter + gamma * intra)


@dataclass(frozen=True)
class DIST(Method):
    """Match relations of probabilities instead of probabilities."""

    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=8.0, log=True)
    beta: float = knob(1.0, "weight of the inter-class part", low=0.0, high=4.0)
    gamma: float = knob(1.0, "weight of the intra-class part", low=0.0, high=4.0)
    ce_weight: float = knob(1.0, "weight of the labels", low=0.0, high=2.0)
    weight: float = knob(2.0, "weight of both parts", low=0.1, high=8.0, log=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        terms = [
            dist_loss(learner.logits_BC, teacher.logits_BC, self.temperature, self.beta, self.gamma)
            for teacher in teachers.values()
        ]
        ce = self.ce_weight * cross_entropy(learner.logits_BC, batch.targets_BC)
        return {"ce": ce, "dist": self.weight * torch.stack(terms).mean()}

"""The two-player game of B-DISTIL on tensors: weights of examples, the search for a weak learner, and its condition.

D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith. Progressive Ensemble Distillation: Building Ensembles
for Efficient Inference. NeurIPS 2023 (arXiv 2302.10093). With students f_s, teacher g, error D_s = f_s(x_i)_j -
g(x_i)_j, N examples i, classes j:

    K+-(i, j) prop. to exp(-+ eta sum_{s<t} D_s(i, j)),   sum_i (K+ + K-)(i, j) = 1        (T rounds of the update)
    condition of a weak learner f_t for class j:   sum_i K+ D_t > 0   and   sum_i K- D_t < 0
    search:   minimise  -mean_j sum_i [ K+ log(1 + D_t / B) + K- log(1 - D_t / B) ],   |D| <= B
    answer:   F_t = (f_1 + ... + f_t) / t;    eta = sqrt(ln(2N) / T) / B  gives  |F_T - g| <= B sqrt(ln(2N) / T)

The paper's code is not public; this follows our specification of it. Here the logarithm is inside the sum over i (by
Jensen's inequality a bound of the outer form): a mean over a batch estimates it without bias, every D stays inside +-B,
and in the first round, where K+ = K- and the outer form only asks for the right mean, it fits the teacher.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from kdbench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

EDGE = 1e-2  # of the barrier's domain: below, it goes on as a straight line, so that a wild start has a gradient


class Weights(NamedTuple):
    """K+ and K-, (N, C) each, columns of both together sum to 1."""

    plus_NC: Tensor
    minus_NC: Tensor

    @property
    def examples_N(self) -> Tensor:
        """How much each example matters, all classes together; uniform in the first round."""
        return (self.plus_NC + self.minus_NC).sum(1)


def step_size(examples: int, rounds: int, bound: Tensor) -> Tensor:
    """eta = sqrt(ln(2N) / T) / B; scalar."""
    return math.sqrt(math.log(2 * examples) / rounds) / bound


def weights(errors_NC: Tensor, eta: Tensor | float) -> Weights:
    """The weights after rounds whose errors D sum up to `errors_NC`: all their multiplicative updates at once."""
    exponents = -eta * errors_NC.double()
    both_2NC = torch.stack([exponents, -exponents])
    normal_C = both_2NC.flatten(0, 1).logsumexp(0)
    plus_NC, minus_NC = (both_2NC - normal_C).exp().to(errors_NC.dtype)
    return Weights(plus_NC, minus_NC)


def edges(given: Weights, errors_NC: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i K+ D and -sum_i K- D by class, (C,) each: a weak learner has both above 0 in every class."""
    return (given.plus_NC * errors_NC).sum(0), -(given.minus_NC * errors_NC).sum(0)


def barrier(plus_BC: Tensor, minus_BC: Tensor, errors_BC: Tensor, bound: Tensor) -> Tensor:
    """-mean over examples and classes of K+ log(1 + D / B) + K- log(1 - D / B); scalar."""
    up_BC, down_BC = log(1 + errors_BC / bound), log(1 - errors_BC / bound)
    return -(plus_BC * up_BC + minus_BC * down_BC).mean()


def log(x: Tensor) -> Tensor:
    """The logarithm, from EDGE down its tangent there."""
    return torch.where(x > EDGE, x.clamp_min(EDGE).log(), math.log(EDGE) + (x - EDGE) / EDGE)

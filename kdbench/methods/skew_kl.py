"""DistiLLM: Towards Streamlined Distillation for Large Language Models.

J. Ko, S. Kim, T. Chen, S.-Y. Yun. ICML 2024.

    forward     D = KL(p_t || alpha p_t + (1 - alpha) p_s)
    reverse     D = KL(p_s || (1 - alpha) p_t + alpha p_s)
    L = w_ce CE + w T^2 mean_b D

p = softmax(z / T), z logits (B, C). Mixing bounds the gradient where one distribution is near zero: D <= ln(1 / alpha).
alpha = 0 is the plain divergence. alpha 0.1 and T = 1 are the paper's, the weights are ours. The released code leaves
the teacher's entropy out of the forward form: other values, equal gradients. The paper's adaptive use of samples of the
student needs a task that generates and is no part of this term. Several teachers: the mean of their terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import torch
from kdbench.losses import kl_rows, log_probabilities, mean_of, supervised
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """ln(share p + (1 - share) q), from logarithms of one shape; share in [0, 1]."""
    if share in (0, 1):
        return log_p if share else log_q
    return torch.logaddexp(log_p + math.log(share), log_q + math.log(1 - share))


def skew_kl(rows_s_RC: Tensor, rows_t_RC: Tensor, alpha: float, temperature: float, reverse: bool) -> Tensor:
    """T^2 mean_r of the skewed divergence; nats, scalar."""
    log_s, log_t = (log_probabilities(rows, temperature) for rows in (rows_s_RC, rows_t_RC))
    first, second = (log_s, log_t) if reverse else (log_t, log_s)
    return temperature**2 * kl_rows(first, log_mixture(first, second, alpha)).mean()


@dataclass(frozen=True)
class SkewKL(Method):
    """Skewed divergence: against a mixture of both distributions (Ko et al. 2024)."""

    family = "logits"
    paper = Paper("DistiLLM: Towards Streamlined Distillation for Large Language Models", "ICML", 2024, "2402.03898")

    alpha: float = knob(0.1, "share of the first distribution in the mixture; 0: not skewed", low=0.0, high=0.9)
    reverse: bool = knob(False, "whether the student's distribution comes first")
    temperature: float = knob(1.0, "softens both distributions", low=1.0, high=20.0, log=True)
    weight: float = knob(1.0, "weight of the divergence", low=0.01, high=20.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        kl = mean_of(
            skew_kl(learner.rows, t.rows, self.alpha, self.temperature, self.reverse) for t in teachers.values()
        )
        return {"ce": self.ce_weight * supervised(learner, batch), "skew_kl": self.weight * kl}

"""On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (GKD).

R. Agarwal, N. Vieillard, Y. Zhou, P. Stanczyk, S. Ramos, M. Geist, O. Bachem. ICLR 2024.

    m = beta p_t + (1 - beta) p_s        D = beta KL(p_t || m) + (1 - beta) KL(p_s || m)
    L = w_ce CE + w T^2 mean_b D

The generalised Jensen-Shannon divergence, p = softmax(z / T), z logits (B, C). It is bounded by the entropy of (beta,
1 - beta), ln 2 at beta = 1/2, where it is symmetric. D / beta tends to KL(p_t || p_s) as beta tends to 0, but D itself
to 0: so small betas want large weights (some libraries jump to KL at exactly 0; that is `kd`). beta and T are the
paper's, the weights are ours. Learning on samples of the student is the task's to offer, not this term's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import kl_rows, log_probabilities, mean_of, supervised
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.skew_kl import log_mixture

if TYPE_CHECKING:
    from torch import Tensor, nn


def jsd(rows_s_RC: Tensor, rows_t_RC: Tensor, beta: float, temperature: float) -> Tensor:
    """T^2 mean_r of the generalised Jensen-Shannon divergence; nats, scalar."""
    log_s, log_t = (log_probabilities(rows, temperature) for rows in (rows_s_RC, rows_t_RC))
    log_m = log_mixture(log_t, log_s, beta)
    return temperature**2 * (beta * kl_rows(log_t, log_m) + (1 - beta) * kl_rows(log_s, log_m)).mean()


@dataclass(frozen=True)
class JSD(Method):
    """Generalised Jensen-Shannon divergence of student and teacher (Agarwal et al. 2024)."""

    family = "logits"
    paper = Paper(
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", "ICLR", 2024, "2306.13649"
    )

    beta: float = knob(0.5, "share of the teacher in the mixture", low=0.05, high=0.95)
    temperature: float = knob(1.0, "softens both distributions", low=1.0, high=20.0, log=True)
    weight: float = knob(1.0, "weight of the divergence", low=0.01, high=100.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        found = mean_of(jsd(learner.rows, t.rows, self.beta, self.temperature) for t in teachers.values())
        return {"ce": self.ce_weight * supervised(learner, batch), "jsd": self.weight * found}

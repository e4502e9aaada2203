"""Knowledge Distillation with Refined Logits (RLD).

W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang. arXiv 2408.07703, 2024.

    SCD = KL((p_t,m, 1 - p_t,m) || (p_s,y, 1 - p_s,y))                m = argmax_c z_t,c
    MCD = KL(q_t || q_s)                                              among the classes with z_t,c < z_t,y
    L = CE + min((epoch + 1) / warmup, 1) mean_b [ alpha T_a^2 SCD + beta T^2 MCD ]

p = softmax(z / T_a), q = softmax(z / T), z logits (B, C), y the label. Where the teacher is right this is DKD; where it
is wrong, its confidence is credited to the label, and classes that it puts above the label are left out. Defaults are
the released CIFAR-100 values, the warm-up of 20 epochs DKD's. An example whose label is the teacher's last class has
no MCD. One-hot targets are needed. Several teachers: the mean of their terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.lazy import torch
from kdbench.losses import kl_rows, log_probabilities, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor, nn


def against_rest(rows_RC: Tensor, class_R: Tensor, temperature: float) -> Tensor:
    """Logarithms of the probability of one class and of all others together, (R, 2)."""
    log_RC, class_R1 = log_probabilities(rows_RC, temperature), class_R[:, None]
    rest_R1 = log_RC.scatter(1, class_R1, -float("inf")).logsumexp(1, keepdim=True)
    return torch.cat([log_RC.gather(1, class_R1), rest_R1], dim=1)


def scd(rows_s_RC: Tensor, rows_t_RC: Tensor, labels_R: Tensor, temperature: float) -> Tensor:
    """Divergence of the teacher's confidence and the student's probability of the label, (R,)."""
    top_R = rows_t_RC.argmax(1)
    return kl_rows(against_rest(rows_t_RC, top_R, temperature), against_rest(rows_s_RC, labels_R, temperature))


def mcd(rows_s_RC: Tensor, rows_t_RC: Tensor, labels_R: Tensor, temperature: float) -> Tensor:
    """Divergence among the classes that the teacher puts below the label, (R,)."""
    above_RC = rows_t_RC >= rows_t_RC.gather(1, labels_R[:, None])
    # Finite, so that a row with nothing below is uniform on both sides, which is 0, instead of undefined.
    log_s, log_t = (
        log_probabilities(wide(rows).masked_fill(above_RC, -1e9), temperature) for rows in (rows_s_RC, rows_t_RC)
    )
    return kl_rows(log_t, log_s)


@dataclass(frozen=True)
class RLD(Method):
    """Refined logits: the teacher's confidence for the label, no classes above it (Sun et al. 2024)."""

    family = "logits"
    paper = Paper("Knowledge Distillation with Refined Logits", "", 2024, "2408.07703")

    alpha: float = knob(1.0, "weight of the confidence part", low=0.0, high=16.0)
    beta: float = knob(8.0, "weight of the part among lower classes", low=0.0, high=16.0)
    temperature: float = knob(4.0, "softens the part among lower classes", low=1.0, high=20.0, log=True)
    alpha_temperature: float = knob(1.0, "softens the confidence part", low=1.0, high=20.0, log=True)
    warmup_epochs: int = knob(20, "epochs over which the term grows to its weight", low=0, high=240)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(hard_labels=True, categorical=True)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        rld = mean_of(self._refined(learner.rows, t.rows, batch.labels) for t in teachers.values())
        grown = min((batch.epoch + 1) / max(self.warmup_epochs, 1), 1.0)
        return {"ce": self.ce_weight * supervised(learner, batch), "rld": grown * rld}

    def _refined(self, rows_s_RC: Tensor, rows_t_RC: Tensor, labels_R: Tensor) -> Tensor:
        given, t, t_alpha = (rows_s_RC, rows_t_RC, labels_R), self.temperature, self.alpha_temperature
        return (self.alpha * t_alpha**2 * scd(*given, t_alpha) + self.beta * t**2 * mcd(*given, t)).mean()

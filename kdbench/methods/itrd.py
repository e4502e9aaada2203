"""Information Theoretic Representation Distillation (ITRD).

R. Miles, A. Lopez Rodriguez, K. Mikolajczyk. BMVC 2022.

    correlation:  log2 sum_d |C_dd - 1|^(2 alpha),  C = Z_s' Z_t / B
    information:  log2 |G_s|_F^2 - log2 |G_s * G_t|_F^2,  each matrix first divided by its trace
    L = CE + w_corr correlation + w_mi information

Z are pooled features (B, D), the student's embedded (linear) to the teacher's width, each column standardised over the
batch; G the Gram matrices (B, B) of features of length 1, * the product of entries: Renyi's entropies of order 2 of the
teacher given the student. Weights 2 and 1 and alpha 1.01 (1.5 for unlike architectures) are the paper's. Deviations:
the embedding stays where widths agree; 1e-6 is added to the sum in the first logarithm, which has no minimum else;
columns are standardised by this batch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import full_precision, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-6


def standardised(feature_BD: Tensor) -> Tensor:
    """Each column less its mean, over its deviation over the batch."""
    centred_BD = feature_BD - feature_BD.mean(0)
    return centred_BD / (centred_BD.square().mean(0) + 1e-5).sqrt()


def correlation(z_s_BD: Tensor, z_t_BD: Tensor, alpha: float) -> Tensor:
    """How far the columns' correlations are from 1; bits, scalar."""
    diagonal_D = (standardised(z_s_BD) * standardised(z_t_BD)).mean(0)
    return ((diagonal_D - 1).square().pow(alpha).sum() + EPS).log2()


def information(z_s_BD: Tensor, z_t_BD: Tensor) -> Tensor:
    """What the teacher's features have beyond the student's (less their mutual information); bits, scalar."""
    s, t = (F.normalize(z, dim=1) for z in (z_s_BD, z_t_BD))
    gram_s, gram_t = s @ s.T, t @ t.T
    entropies = [(gram / gram.diagonal().sum().clamp_min(EPS)).square().sum() for gram in (gram_s, gram_s * gram_t)]
    return (entropies[0] + EPS).log2() - (entropies[1] + EPS).log2()


@dataclass(frozen=True)
class ITRD(Method):
    """Information theory: correlations of features and Renyi's mutual information (Miles et al. 2022)."""

    family = "relations"
    paper = Paper("Information Theoretic Representation Distillation", "BMVC", 2022, "2112.00459")

    correlation_weight: float = knob(2.0, "weight of the correlations", low=0.0, high=20.0)
    information_weight: float = knob(1.0, "weight of the mutual information", low=0.0, high=20.0)
    alpha: float = knob(1.01, "exponent of the correlations; 1.5 for unlike architectures", low=1.0, high=3.0)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        (width_s,) = learner.taps["pooled"]
        return nn.ModuleList(nn.Linear(width_s, teacher.taps["pooled"][0]) for teacher in teachers.values())

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        with full_precision(learner.pooled):
            pairs = [
                (embed(wide(learner.pooled)), wide(t.pooled)) for embed, t in zip(heads, teachers.values(), strict=True)
            ]
            corr = mean_of(correlation(s, t, self.alpha) for s, t in pairs)
            mi = mean_of(information(s, t) for s, t in pairs)
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "itrd": self.correlation_weight * corr,
            "itrd_information": self.information_weight * mi,
        }

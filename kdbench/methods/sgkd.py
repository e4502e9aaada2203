"""Learning from Stochastic Teacher Representations Using Student-Guided Knowledge Distillation (SSD, SGKD).

M. H. Aslam, C. Martinez, M. Pedersoli, A. Koerich, A. Etemad, E. Granger. ECML PKDD 2025.

    r_k = dropout(v_t),  k = 1..N        a = softmax_k(<s, r_k> / 5),  below its 0.9-quantile 0, made to sum to 1
    L = w_ce CE + w mean_bd (s - sum_k a_k r_k)^2

s and v_t are the pooled features (B, D) that enter the classifiers; draws show the teacher's uncertainty, and the
student picks those that it is near to (a has a gradient). N 30, 5, 0.9 and weights 1/2 are the released values; with
N = 30 three draws are left. Dropout acts on the pooled feature alone: the exact special case of a teacher with dropout
before its classifier, which needs no further pass; the rate (the teacher's own in the paper) is ours. The paper's
teacher is of the student's architecture; for other widths the student's feature goes through a learnt linear layer.
The released student stays in eval mode after its first validation, and is then trained by labels alone: not so here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import full_precision, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor


def guided(s_BD: Tensor, draws_KBD: Tensor, scale: float, quantile: float) -> Tensor:
    """Mean squared distance of s and the mean of the draws that are nearest to it by their products; scalar."""
    share_KB = F.softmax((s_BD * draws_KBD).sum(2) / scale, dim=0)
    kept_KB = share_KB * (share_KB >= share_KB.detach().quantile(quantile, dim=0))
    mean_BD = (kept_KB[:, :, None] * draws_KBD).sum(0) / kept_KB.sum(0)[:, None]
    return F.mse_loss(s_BD, mean_BD)


@dataclass(frozen=True)
class SGKD(Method):
    """Stochastic teacher: the student picks among draws of its feature (Aslam et al. 2025)."""

    family = "features"
    paper = Paper(
        "Learning from Stochastic Teacher Representations Using Student-Guided Knowledge Distillation",
        "ECML PKDD",
        2025,
        "2504.14307",
    )

    draws: int = knob(30, "N, draws of the teacher's feature", low=1, high=100, log=True)
    dropout: float = knob(0.2, "rate of the dropout of each draw", low=0.0, high=0.9)
    scale: float = knob(5.0, "divides the products of features", low=0.5, high=50.0, log=True)
    quantile: float = knob(0.9, "draws with shares below it are left out", low=0.0, high=1.0)
    weight: float = knob(0.5, "weight of the distance", low=0.01, high=100.0, log=True)
    ce_weight: float = knob(0.5, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        if len(teachers) != 1:
            raise Refusal(f"sgkd draws from one teacher; {learner.role} has {len(teachers)}")
        ((width_t,),) = (teacher.taps["pooled"] for teacher in teachers.values())
        (width_s,) = learner.taps["pooled"]
        return nn.Identity() if width_s == width_t else nn.Linear(width_s, width_t)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        (teacher,) = teachers.values()
        v_BD, rng = wide(teacher.pooled), batch.rng
        kept_KBD = torch.rand((self.draws, *v_BD.shape), generator=rng, device=rng.device) >= self.dropout
        with full_precision(v_BD):
            term = guided(heads(wide(learner.pooled)), kept_KBD * v_BD / (1 - self.dropout), self.scale, self.quantile)
        return {"ce": self.ce_weight * supervised(learner, batch), "sgkd": self.weight * term}

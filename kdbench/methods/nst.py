"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (NST).

Z. Huang, N. Wang. arXiv 1707.01219, 2017.

    f_d = F_d / |F_d|_2, one vector (H * W) for each channel d        k(a, b) = (a . b)^2
    L = CE + w sum_l mean_b [ mean_dd' k(f_t, f_t') + mean k(f_s, f_s') - 2 mean k(f_s, f_t) ]

The squared maximum mean discrepancy between the channels' spatial patterns of both networks, for each pair of blocks:
numbers of channels need not agree; the larger map is average-pooled to the smaller. The polynomial kernel of degree 2,
all blocks and w = 50 are RepDistiller's. Blocks are paired from the last one backwards (as `at` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, full_precision, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.at import check_places, last_backwards

if TYPE_CHECKING:
    from torch import Tensor


def kernel(a_BDP: Tensor, b_BEP: Tensor) -> Tensor:
    """Mean of k over all pairs of channels and the batch; scalar."""
    return (a_BDP @ b_BEP.transpose(1, 2)).square().mean()


def nst_loss(map_s_BDHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
    """Squared discrepancy of one pair of maps; scalar."""
    with full_precision(map_s_BDHW):
        maps = pool_to_smaller(wide(map_s_BDHW), wide(map_t_BDHW))
        s, t = (F.normalize(x.flatten(2), dim=2) for x in maps)
        return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


@dataclass(frozen=True)
class NST(Method):
    """Neuron selectivity: the distribution of the channels' spatial patterns (Huang & Wang 2017)."""

    family = "features"
    paper = Paper("Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", "", 2017, "1707.01219")

    weight: float = knob(50.0, "weight of the discrepancy", low=0.1, high=1000.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        check_places("nst", learner, teachers)
        return nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        nst = mean_of(
            torch.stack(
                [nst_loss(as_map(s), as_map(t)) for s, t in last_backwards(learner.blocks, teacher.blocks)]
            ).sum()
            for teacher in teachers.values()
        )
        return {"ce": self.ce_weight * supervised(learner, batch), "nst": self.weight * nst}

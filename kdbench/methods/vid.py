"""Variational Information Distillation for Knowledge Transfer (VID).

S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai. CVPR 2019.

    sigma_d^2 = softplus(a_d) + 1e-5        L = CE + w sum_l mean 1/2 [ (mu(F_s^l) - F_t^l)^2 / sigma^2 + ln sigma^2 ]

The teacher's features are given a normal distribution around a regression mu (three 1x1 convolutions, ReLU between) of
the student's, with a trained variance for each channel, which starts at 5. All blocks and w = 1 are RepDistiller's,
which trains a (mdistiller does not). The larger map is average-pooled to the smaller; blocks are paired from the last
one backwards; tokens become their square grid, vectors a map of one position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.at import last_backwards

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-5


def vid_loss(mean_BDHW: Tensor, map_t_BDHW: Tensor, raw_D: Tensor) -> Tensor:
    """Mean negative log-likelihood of the teacher's map, up to 1/2 ln 2 pi; nats, scalar."""
    variance_D11 = (F.softplus(wide(raw_D)) + EPS)[:, None, None]
    squares = (wide(mean_BDHW) - wide(map_t_BDHW)).square()
    return 0.5 * (squares / variance_D11 + variance_D11.log()).mean()


def regression(channels_s: int, channels_t: int, variance: float) -> nn.Module:
    """`mean`, three 1x1 convolutions, and `raw`, a for each channel."""
    made = nn.Module()
    layers: list[nn.Module] = []
    for width in (channels_s, channels_t, channels_t):
        layers += [nn.Conv2d(width, channels_t, 1, bias=False), nn.ReLU()]
    made.mean = nn.Sequential(*layers[:-1])
    made.raw = nn.Parameter(torch.full((channels_t,), math.log(math.expm1(variance - EPS))))
    return made


@dataclass(frozen=True)
class VID(Method):
    """Variational information: how well the student's features tell the teacher's (Ahn et al. 2019)."""

    family = "features"
    paper = Paper("Variational Information Distillation for Knowledge Transfer", "CVPR", 2019, "1904.05835")

    weight: float = knob(1.0, "weight of the information term", low=0.01, high=100.0, log=True)
    variance: float = knob(5.0, "of every channel, at first", low=0.1, high=50.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        return nn.ModuleList(
            nn.ModuleList(
                regression(map_shape(s)[0], map_shape(t)[0], self.variance)
                for s, t in last_backwards(learner.blocks, teacher.blocks)
            )
            for teacher in teachers.values()
        )

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads, teachers.values(), strict=True)
        vid = mean_of(self._blocks(regressions, learner, teacher) for regressions, teacher in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "vid": self.weight * vid}

    def _blocks(self, regressions: Any, learner: Out, teacher: Out) -> Tensor:
        terms = []
        for head, (s, t) in zip(regressions, last_backwards(learner.blocks, teacher.blocks), strict=True):
            map_s, map_t = pool_to_smaller(as_map(s), as_map(t))
            terms.append(vid_loss(head.mean(map_s), map_t, head.raw))
        return torch.stack(terms).sum()

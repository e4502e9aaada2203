"""Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons (AB).

B. Heo, M. Lee, S. Yun, J. Y. Choi. AAAI 2019.

    d(t, s) = (s + mu)^2 where t <= 0 and s > -mu;   (s - mu)^2 where t > 0 and s <= mu;   else 0
    L = w sum_l 2^(l - last) mean_b sum d(t^l, r(s^l)) in the first epochs,   L = CE in all others

Only whether a neuron of the teacher is active counts, and the student's (through r, a 1x1 convolution + BatchNorm)
shall be so by a margin mu = 1. Initialisation takes 30 of 240 epochs, w = 3 / 1000: RepDistiller's. The first epochs
are a share of the stage's here.

Deviations: the paper's features come before a block's ReLU; taps come behind it, where an active neuron is one above 0
as before, and r is given the student's activations. The teacher's larger map is average-pooled to the student's, which
is active where any part is; the student's larger one after r. Blocks are paired from the last backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import as_map, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.at import last_backwards

if TYPE_CHECKING:
    from torch import Tensor


def boundary(map_t_BDHW: Tensor, regressed_BDHW: Tensor, margin: float) -> Tensor:
    """Mean over examples of the sum of d; scalar."""
    active = map_t_BDHW > 0
    above = (regressed_BDHW + margin).clamp_min(0).square()
    below = (margin - regressed_BDHW).clamp_min(0).square()
    return torch.where(active, below, above).sum() / len(map_t_BDHW)


@dataclass(frozen=True)
class AB(Method):
    """Activation boundaries: which neurons are active, before the labels (Heo et al. 2019)."""

    family = "features"
    paper = Paper(
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        "AAAI",
        2019,
        "1811.03233",
    )

    weight: float = knob(0.003, "weight of the boundaries' distance, a sum over features", low=1e-6, high=1.0, log=True)
    margin: float = knob(1.0, "by which the student's neurons shall keep from the boundary", low=0.01, high=10.0)
    first: float = knob(0.125, "share of the epochs that learn boundaries alone", low=0.0, high=0.9)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        def connector(shape_s: tuple[int, ...], shape_t: tuple[int, ...]) -> nn.Module:
            channels = map_shape(shape_t)[0]
            conv = nn.Conv2d(map_shape(shape_s)[0], channels, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels))

        return nn.ModuleList(
            nn.ModuleList(connector(s, t) for s, t in last_backwards(learner.blocks, teacher.blocks))
            for teacher in teachers.values()
        )

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads, teachers.values(), strict=True)
        ab = mean_of(self._blocks(connectors, learner, teacher) for connectors, teacher in pairs)
        begins = float(batch.epoch < self.first * batch.epochs)
        return {"ce": (1 - begins) * supervised(learner, batch), "ab": begins * self.weight * ab}

    def _blocks(self, connectors: Any, learner: Out, teacher: Out) -> Tensor:
        terms = []
        pairs = last_backwards(learner.blocks, teacher.blocks)
        for back, (connect, (s, t)) in enumerate(zip(connectors, pairs, strict=True)):
            regressed, target = pool_to_smaller(wide(connect(as_map(s))), wide(as_map(t)))
            terms.append(boundary(target, regressed, self.margin) / 2**back)
        return torch.stack(terms).sum()

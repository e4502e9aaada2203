"""A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning (FSP).

J. Yim, D. Joo, J. Bae, J. Kim. CVPR 2017.

    G_de = sum_hw F^l_dhw F^(l+1)_ehw / (H W)
    L = w sum over transitions mean (G_s - G_t)^2 in the first epochs,   L = CE in all others

G (B, D, E) is the flow of the solution from one block to the next; the larger map is average-pooled to the smaller.
w = 50 and 30 of 240 epochs of initialisation are RepDistiller's; here these are a share of the stage's. Transitions
must have equal channels in both networks: those that do are paired from the last one backwards, others are left out.
Several teachers count as their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import as_map, full_precision, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor


def flow(map_BDHW: Tensor, next_BEHW: Tensor) -> Tensor:
    """G (B, D, E) of two blocks that follow each other."""
    first, second = pool_to_smaller(wide(map_BDHW), wide(next_BEHW))
    return first.flatten(2) @ second.flatten(2).transpose(1, 2) / first[0, 0].numel()


def fsp_loss(maps_s: tuple[Tensor, Tensor], maps_t: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared difference of the flows of one transition; scalar."""
    with full_precision(maps_s[0]):
        return (flow(*maps_s) - flow(*maps_t)).square().mean()


def alike(widths_s: Sequence[int], widths_t: Sequence[int]) -> list[tuple[int, int]]:
    """Positions of the first blocks of paired transitions, of student and teacher, the last ones first."""
    found: list[tuple[int, int]] = []
    left = len(widths_t) - 1
    for i, widths in reversed(list(enumerate(pairwise(widths_s)))):
        same = [j for j in range(left) if (widths_t[j], widths_t[j + 1]) == widths]
        if same:
            left = same[-1]
            found.append((i, left))
    return found


@dataclass(frozen=True)
class FSP(Method):
    """Flow of solution procedure: products of the maps of blocks that follow each other (Yim et al. 2017)."""

    family = "features"
    paper = Paper(
        "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        "CVPR",
        2017,
    )

    weight: float = knob(50.0, "weight of the flows' distance", low=0.1, high=10000.0, log=True)
    first: float = knob(0.125, "share of the epochs that learn flows alone", low=0.0, high=0.9)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        widths_s = [map_shape(shape)[0] for shape in learner.blocks]
        for role, teacher in teachers.items():
            widths_t = [map_shape(shape)[0] for shape in teacher.blocks]
            if not alike(widths_s, widths_t):
                raise Refusal(
                    f"fsp needs blocks that follow each other with equal channels in both networks: {learner.role} has "
                    f"{widths_s}, {role} {widths_t}"
                )
        return nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        fsp = mean_of(self._flows(learner, teacher) for teacher in teachers.values())
        begins = float(batch.epoch < self.first * batch.epochs)
        return {"ce": (1 - begins) * supervised(learner, batch), "fsp": begins * self.weight * fsp}

    def _flows(self, learner: Out, teacher: Out) -> Tensor:
        maps_s, maps_t = ([as_map(block) for block in out.blocks] for out in (learner, teacher))
        pairs = alike([m.shape[1] for m in maps_s], [m.shape[1] for m in maps_t])
        return torch.stack([fsp_loss((maps_s[i], maps_s[i + 1]), (maps_t[j], maps_t[j + 1])) for i, j in pairs]).sum()

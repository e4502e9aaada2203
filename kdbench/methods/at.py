"""Attention transfer, "Paying more attention to attention" (Zagoruyko & Komodakis, ICLR 2017).

    L = CE + w sum_l mean (A(F_s^l) - A(F_t^l))^2,   A(F) = vec(mean_d |F_d|^p) / ||.||_2

over blocks l, matched from the last one backwards; where maps differ in size the larger one is average-pooled.
As in RepDistiller, p = 2 and w = 1000 with a mean over positions (the paper: beta / 2 and the norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, cross_entropy, map_shape
from kdbench.method import Method, Needs, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor


def attention(feature: Tensor, power: float, size: tuple[int, int]) -> Tensor:
    """Map (B, D, H, W) -> unit vectors (B, h * w) for size (h, w): where the energy of the channels is."""
    map_BHW = feature.abs().pow(power).mean(dim=1)
    return F.normalize(F.adaptive_avg_pool2d(map_BHW, size).flatten(1), dim=1)


def at_loss(feature_s: Tensor, feature_t: Tensor, power: float) -> Tensor:
    """mean over batch and positions of the squared difference of two attention maps: a scalar."""
    size = (min(feature_s.shape[2], feature_t.shape[2]), min(feature_s.shape[3], feature_t.shape[3]))
    return (attention(feature_s, power, size) - attention(feature_t, power, size)).square().mean()


@dataclass(frozen=True)
class AT(Method):
    """Look where the teacher looks."""

    power: float = knob(2.0, "p of the attention map", low=1.0, high=4.0)
    weight: float = knob(1000.0, "weight of the sum over blocks", low=1.0, high=10000.0, log=True)
    ce_weight: float = knob(1.0, "weight of the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        for side in (learner, *teachers.values()):
            if all(map_shape(shape)[1:] == (1, 1) for shape in side.blocks):
                raise Refusal(f"at compares where features are strong, but the {side.role}'s blocks have no positions")
        return nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        blocks_s = [as_map(block) for block in learner.blocks]
        terms = []
        for teacher in teachers.values():
            blocks_t = [as_map(block) for block in teacher.blocks]
            pairs = zip(reversed(blocks_s), reversed(blocks_t), strict=False)
            terms.append(torch.stack([at_loss(block_s, block_t, self.power) for block_s, block_t in pairs]).sum())
        ce = self.ce_weight * cross_entropy(learner.logits_BC, batch.targets_BC)
        return {"ce": ce, "at": self.weight * torch.stack(terms).mean()}

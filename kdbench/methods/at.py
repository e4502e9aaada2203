"""Paying More Attention to Attention: Improving the Performance of CNNs via Attention Transfer.

S. Zagoruyko, N. Komodakis. ICLR 2017.

    A(F) = v / |v|_2, v = vec(mean_d |F_d|^p)        L = CE + w sum_l mean (A(F_s^l) - A(F_t^l))^2

F (B, D, H, W): only the size H, W must agree, so the larger map is average-pooled to the smaller. Defaults p = 2,
w = 1000, all blocks, mean over B * H * W are those of RepDistiller and mdistiller. Where student and teacher have
unequal numbers of blocks, they are paired from the last one backwards, and the first ones of the longer side are left
out. Tokens become their square grid (`losses.as_map`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def attention(map_BDHW: Tensor, power: float) -> Tensor:
    """The normalised attention map: (B, H * W), each row of Euclidean length 1."""
    return F.normalize(map_BDHW.abs().pow(power).mean(1).flatten(1), dim=1)


def at_loss(map_s_BDHW: Tensor, map_t_BDHW: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of the attention maps of one pair of blocks; scalar. Channels may differ."""
    map_s, map_t = pool_to_smaller(wide(map_s_BDHW), wide(map_t_BDHW))
    return (attention(map_s, power) - attention(map_t, power)).pow(2).mean()


def last_backwards(blocks_s: Sequence[T], blocks_t: Sequence[T]) -> list[tuple[T, T]]:
    """Pairs of blocks, the last with the last, and so on backwards until one side has no more."""
    return list(zip(reversed(blocks_s), reversed(blocks_t), strict=False))


def check_places(method: str, learner: Profile, teachers: Mapping[str, Profile]) -> None:
    """Raises Refusal where no pair of blocks has maps of more than one place."""
    for role, teacher in teachers.items():
        pairs = last_backwards([map_shape(s) for s in learner.blocks], [map_shape(s) for s in teacher.blocks])
        if all(min(s[1], t[1]) * min(s[2], t[2]) == 1 for s, t in pairs):
            raise Refusal(
                f"{method} compares places in feature maps, and no blocks of {learner.role} and {role} have maps "
                f"larger than 1x1"
            )


@dataclass(frozen=True)
class AT(Method):
    """Attention transfer: where in the image the features are large (Zagoruyko & Komodakis 2017)."""

    family = "features"
    paper = Paper(
        "Paying More Attention to Attention: Improving the Performance of CNNs via Attention Transfer",
        "ICLR",
        2017,
        "1612.03928",
    )

    weight: float = knob(1000.0, "weight of the attention term", low=1.0, high=10000.0, log=True)
    power: float = knob(2.0, "exponent p of the features", low=1.0, high=4.0)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        check_places("at", learner, teachers)
        return nn.Module()

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        at = mean_of(
            torch.stack(
                [at_loss(as_map(s), as_map(t), self.power) for s, t in last_backwards(learner.blocks, teacher.blocks)]
            ).sum()
            for teacher in teachers.values()
        )
        return {"ce": self.ce_weight * supervised(learner, batch), "at": self.weight * at}

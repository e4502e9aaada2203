"""Distilling Knowledge via Knowledge Review (ReviewKD).

P. Chen, S. Liu, H. Zhao, J. Jia. CVPR 2021.

    X_l = a_1 C(F_s^l) + a_2 up(X_(l+1)),   (a_1, a_2) = sigmoid of a 1x1 convolution of both      from the last l down
    L = CE + min((epoch + 1) / warmup, 1) w sum_l HCL(R(X_l), F_t^l)
    HCL = weighted mean of the squared differences at full size and pooled to 4, 2 and 1 positions a side

So an early block of the teacher is learnt with the help of late blocks of the student. C is a 1x1 convolution to `mid`
channels, R a 3x3 one, both with BatchNorm; weights of HCL are 1, 1/2, 1/4, 1/8, as long as the map is larger. The
pooled features come last, as maps of one position. w (0.6 to 8 by pair) = 5, a warm-up of 20 of 240 epochs (shorten it
with the recipe) and mid = the student's last width, at most 512, are the released values. Blocks are paired from the
last backwards; maps change their size to the nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, map_shape, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.at import last_backwards

if TYPE_CHECKING:
    from torch import Tensor


def hierarchical(map_s_BDHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
    """HCL of two maps of one shape; scalar."""
    s, t = wide(map_s_BDHW), wide(map_t_BDHW)
    terms, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for side in (4, 2, 1):
        if side < s.shape[2]:
            weight /= 2
            total += weight
            pooled = [F.adaptive_avg_pool2d(x, side) for x in (s, t)]
            terms = terms + weight * F.mse_loss(pooled[0], pooled[1])
    return terms / total


def fusion(channels_s: int, mid: int, channels_t: int, last: bool) -> nn.Module:
    """`enter` C, `leave` R and `attend` (nothing, for the last block)."""
    made = nn.Module()
    made.enter = nn.Sequential(nn.Conv2d(channels_s, mid, 1, bias=False), nn.BatchNorm2d(mid))
    made.leave = nn.Sequential(nn.Conv2d(mid, channels_t, 3, padding=1, bias=False), nn.BatchNorm2d(channels_t))
    made.attend = nn.Identity() if last else nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid())
    return made


def fused(head: Any, map_s_BDHW: Tensor, later_BMHW: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """R(X), of the teacher's `size`, and X, from a block's map and the X of the block after it."""
    x = head.enter(map_s_BDHW)
    if later_BMHW is not None:
        later = F.interpolate(later_BMHW, x.shape[2:], mode="nearest")
        share = head.attend(torch.cat([x, later], 1))
        x = share[:, :1] * x + share[:, 1:] * later
    return head.leave(x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")), x


def reviewed(out: Out) -> list[Tensor]:
    """Maps of the blocks and, last, the pooled feature as a map of one position."""
    return [*(as_map(block) for block in out.blocks), out.pooled[:, :, None, None]]


@dataclass(frozen=True)
class ReviewKD(Method):
    """Knowledge review: late blocks help to learn the teacher's early ones (Chen et al. 2021)."""

    family = "features"
    paper = Paper("Distilling Knowledge via Knowledge Review", "CVPR", 2021, "2104.09044")

    weight: float = knob(5.0, "weight of the review", low=0.01, high=100.0, log=True)
    warmup_epochs: int = knob(20, "epochs over which the term grows to its weight", low=0, high=240)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*", "pooled"), teacher=("block*", "pooled"))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        widths_s, *widths = (
            [*(map_shape(shape)[0] for shape in p.blocks), p.taps["pooled"][0]] for p in (learner, *teachers.values())
        )
        mid = min(widths_s[-1], 512)
        return nn.ModuleList(
            nn.ModuleList(
                fusion(s, mid, t, last=not back) for back, (s, t) in enumerate(last_backwards(widths_s, widths_t))
            )
            for widths_t in widths
        )

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        review = mean_of(self._review(own, learner, t) for own, t in zip(heads, teachers.values(), strict=True))
        grown = min((batch.epoch + 1) / max(self.warmup_epochs, 1), 1.0)
        return {"ce": self.ce_weight * supervised(learner, batch), "reviewkd": grown * self.weight * review}

    def _review(self, fusions: Any, learner: Out, teacher: Out) -> Tensor:
        terms, x = [], None
        for head, (s, t) in zip(fusions, last_backwards(reviewed(learner), reviewed(teacher)), strict=True):
            answer, x = fused(head, s, x, (t.shape[2], t.shape[3]))
            terms.append(hierarchical(answer, t))
        return torch.stack(terms).sum()

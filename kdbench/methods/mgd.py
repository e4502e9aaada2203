"""Masked Generative Distillation (MGD).

Z. Yang, Z. Li, M. Shao, D. Shi, Z. Yuan, C. Yuan. ECCV 2022.

    L = CE + w / B sum (G(mask * align(F_s)) - F_t)^2

F are the last blocks' maps. For each example whole channels of the student's aligned map (a 1x1 convolution) are
dropped with probability 0.15, and G, two 3x3 convolutions with a ReLU between, generates the teacher's from the rest.
w = 7e-5 and the mask of channels are the paper's for classification on ImageNet, where the sum is over D = 512 or more
channels; small networks want more. Alignment also where widths agree (the released code then leaves it out). The larger
map is average-pooled to the smaller; tokens become their square grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import as_map, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor


def mgd_loss(generated_BDHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
    """Mean over examples of the sum of squared differences; scalar."""
    return (wide(generated_BDHW) - wide(map_t_BDHW)).square().sum() / len(map_t_BDHW)


def channel_mask(count: int, channels: int, rate: float, rng: torch.Generator) -> Tensor:
    """0 with probability `rate`, else 1; float32 (B, D, 1, 1)."""
    return (torch.rand((count, channels, 1, 1), generator=rng, device=rng.device) >= rate).float()


def generator(channels_s: int, channels_t: int) -> nn.Module:
    """`align` and `generate`."""
    made = nn.Module()
    made.align = nn.Conv2d(channels_s, channels_t, 1)
    first, second = (nn.Conv2d(channels_t, channels_t, 3, padding=1) for _ in range(2))
    made.generate = nn.Sequential(first, nn.ReLU(), second)
    return made


@dataclass(frozen=True)
class MGD(Method):
    """Masked generation: the teacher's map from a part of the student's channels (Yang et al. 2022)."""

    family = "features"
    paper = Paper("Masked Generative Distillation", "ECCV", 2022, "2205.01529")

    weight: float = knob(7e-5, "weight of the generation, a sum over features", low=1e-6, high=1.0, log=True)
    rate: float = knob(0.15, "probability with which a channel is masked", low=0.0, high=0.9)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block-1",), teacher=("block-1",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        channels_s, *channels = (map_shape(profile.blocks[-1])[0] for profile in (learner, *teachers.values()))
        return nn.ModuleList(generator(channels_s, channels_t) for channels_t in channels)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads, teachers.values(), strict=True)
        mgd = mean_of(self._term(head, learner, teacher, batch) for head, teacher in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "mgd": self.weight * mgd}

    def _term(self, head: Any, learner: Out, teacher: Out, batch: Batch) -> Tensor:
        map_s, map_t = pool_to_smaller(as_map(learner.blocks[-1]), as_map(teacher.blocks[-1]))
        aligned = head.align(map_s)
        mask = channel_mask(len(aligned), aligned.shape[1], self.rate, batch.rng)
        return mgd_loss(head.generate(mask.to(aligned.dtype) * aligned), map_t)

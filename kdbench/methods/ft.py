"""Paraphrasing Complex Network: Network Compression via Factor Transfer (FT).

J. Kim, S. Park, N. Kwak. NeurIPS 2018.

    f_t = encoder(F_t), F_t' = decoder(f_t)        f_s = translator(F_s)
    L = CE + w mean | f_t / |f_t|_2 - f_s / |f_s|_2 | + mean (F_t - F_t')^2

F are the last blocks' maps; the paraphraser (encoder and decoder, three convolutions each with BatchNorm and leaky
ReLU) has k D_t channels inside, the translator is such an encoder of the student's map. Factors are flattened and of
length 1. k = 1/2 and w = 200 are RepDistiller's, which compares attention maps of the factors; the norm is the paper's.
Deviation: the paper trains the paraphraser first, alone, for 30 epochs; here it learns to reconstruct beside the
student, whose term moves no encoder. The larger factor is average-pooled to the smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import as_map, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor


def ft_loss(factor_s_BDHW: Tensor, factor_t_BDHW: Tensor) -> Tensor:
    """Mean absolute difference of the factors, each example's of length 1; scalar."""
    maps = pool_to_smaller(wide(factor_s_BDHW), wide(factor_t_BDHW))
    s, t = (F.normalize(x.flatten(1), dim=1) for x in maps)
    return F.l1_loss(s, t)


def three(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """Three 3x3 convolutions, each with BatchNorm and leaky ReLU."""
    layers: list[nn.Module] = []
    for width_in, width in pairwise(widths):
        conv = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def factors(channels_s: int, channels_t: int, inside: int) -> nn.Module:
    """`encoder` and `decoder` of the teacher's map, `translator` of the student's."""
    made = nn.Module()
    made.encoder = three((channels_t, channels_t, inside, inside))
    made.decoder = three((inside, inside, channels_t, channels_t))
    made.translator = three((channels_s, channels_s, inside, inside))
    return made


@dataclass(frozen=True)
class FT(Method):
    """Factor transfer: the student learns a paraphrase of the teacher's map (Kim et al. 2018)."""

    family = "features"
    paper = Paper(
        "Paraphrasing Complex Network: Network Compression via Factor Transfer", "NeurIPS", 2018, "1802.04977"
    )

    weight: float = knob(200.0, "weight of the factors' distance", low=0.1, high=10000.0, log=True)
    inside: float = knob(0.5, "k, the paraphrase's channels as a share of the teacher's", low=0.1, high=2.0)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block-1",), teacher=("block-1",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        channels_s, *channels = (map_shape(profile.blocks[-1])[0] for profile in (learner, *teachers.values()))
        return nn.ModuleList(factors(channels_s, c, max(round(self.inside * c), 1)) for c in channels)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        map_s, *maps_t = (as_map(out.blocks[-1]) for out in (learner, *teachers.values()))
        said = [head.encoder(map_t) for head, map_t in zip(heads, maps_t, strict=True)]
        pairs = list(zip(heads, said, maps_t, strict=True))
        paraphrase = mean_of(F.mse_loss(wide(head.decoder(f)), wide(map_t)) for head, f, map_t in pairs)
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "ft": self.weight * mean_of(ft_loss(head.translator(map_s), f.detach()) for head, f, _ in pairs),
            "ft_paraphrase": paraphrase,
        }

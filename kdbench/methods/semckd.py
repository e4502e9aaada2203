"""Cross-Layer Distillation with Semantic Calibration (SemCKD).

D. Chen, J.-P. Mei, Y. Zhang, C. Wang, Z. Wang, Y. Feng, C. Chen. AAAI 2021.

    a_slt = softmax over l' of the teacher's blocks of Q(F_s^l) . K(F_t^l')
    L = CE + w / S sum_l mean_b sum_l' a_bll' mean (r_ll'(F_s^l) - F_t^l')^2

Each of the student's S blocks learns from all of the teacher's, and attention, which is trained along, says from which
how much, for each example. r is 1x1, 3x3, 1x1 convolutions with BatchNorm and ReLU and 2 D_t channels inside; w = 400
is the released value. The larger map is average-pooled to the smaller. Deviation: queries and keys (linear, ReLU,
linear, length 1, 128 numbers) are of the pooled maps, not of rows of the batch's similarity matrix, which tie the layer
to one batch size and to the order of the examples. Heads grow with the product of both numbers of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, full_precision, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor

KEYS = 128


def attention(query_BSD: Tensor, key_BTD: Tensor) -> Tensor:
    """Shares (B, S, T) of the teacher's blocks for each of the student's; each row sums to 1."""
    with full_precision(query_BSD):
        query, key = F.normalize(wide(query_BSD), dim=2), F.normalize(wide(key_BTD), dim=2)
        return (query @ key.transpose(1, 2)).softmax(2)


def calibrated(share_BST: Tensor, distance_BST: Tensor) -> Tensor:
    """Mean over examples and the student's blocks of the attended distances; scalar."""
    return (share_BST * distance_BST).sum(2).mean()


def embedding(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, KEYS), nn.ReLU(), nn.Linear(KEYS, KEYS))


def regression(channels_s: int, channels_t: int) -> nn.Sequential:
    """Maps (B, channels_s, H, W) -> (B, channels_t, H, W)."""
    inside = 2 * channels_t
    layers: list[nn.Module] = []
    for width_in, kernel in ((channels_s, 1), (inside, 3)):
        conv = nn.Conv2d(width_in, inside, kernel, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(inside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(inside, channels_t, 1, bias=False))


@dataclass(frozen=True)
class SemCKD(Method):
    """Semantic calibration: attention chooses which block learns from which (Chen et al. 2021)."""

    family = "features"
    paper = Paper("Cross-Layer Distillation with Semantic Calibration", "AAAI", 2021, "2012.03236")

    weight: float = knob(400.0, "weight of the attended distances", low=0.1, high=4000.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        widths_s, *widths = ([map_shape(shape)[0] for shape in p.blocks] for p in (learner, *teachers.values()))
        made = nn.ModuleList()
        for widths_t in widths:
            head = nn.Module()
            head.query, head.key = (nn.ModuleList(embedding(w) for w in side) for side in (widths_s, widths_t))
            head.regress = nn.ModuleList(regression(s, t) for s in widths_s for t in widths_t)
            made.append(head)
        return made

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads, teachers.values(), strict=True)
        semckd = mean_of(self._term(head, learner, teacher) for head, teacher in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "semckd": self.weight * semckd}

    def _term(self, head: Any, learner: Out, teacher: Out) -> Tensor:
        maps_s, maps_t = ([as_map(block) for block in out.blocks] for out in (learner, teacher))
        query, key = (
            torch.stack([embed(x.mean((2, 3))) for embed, x in zip(embeds, maps, strict=True)], 1)
            for embeds, maps in ((head.query, maps_s), (head.key, maps_t))
        )
        distances = []
        for regress, (s, t) in zip(head.regress, [(s, t) for s in maps_s for t in maps_t], strict=True):
            small_s, small_t = pool_to_smaller(s, t)
            distances.append((wide(regress(small_s)) - wide(small_t)).square().mean((1, 2, 3)))
        return calibrated(attention(query, key), torch.stack(distances, 1).unflatten(1, (len(maps_s), len(maps_t))))

"""FitNets: Hints for Thin Deep Nets.

A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio. ICLR 2015.

    L = CE + w mean (r(F_s) - F_t)^2

F_s, F_t are the hint block's features as maps (B, D, H, W); r is a trained regressor, convolution + BatchNorm + ReLU,
that also fits the size. Defaults (second block, w = 100) and r are those of RepDistiller and mdistiller, trained in one
stage. Deviations: the paper trains the hint first, alone, and KD afterwards; for a student map n times larger than the
teacher's the convolution has stride n and kernel 2n - 1, and for one n times smaller it is the transposed convolution
with stride n (for n = 2 both are mdistiller's, which otherwise takes a kernel as large as the difference). Tokens
become their square grid and vectors a map of one position (`losses.as_map`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import as_map, map_shape, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor


def fitnet_loss(regressed_BDHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
    """Mean over all elements of the squared difference; scalar."""
    return F.mse_loss(wide(regressed_BDHW), wide(map_t_BDHW))


def regressor(shape_s: tuple[int, int, int], shape_t: tuple[int, int, int]) -> nn.Module:
    """Convolution + BatchNorm + ReLU from maps (B, *shape_s) to (B, *shape_t), each shape (D, H, W).

    Raises:
        Refusal: one map is higher and the other wider.
    """
    (channels_s, *size_s), (channels_t, *size_t) = shape_s, shape_t
    sizes = list(zip(size_s, size_t, strict=True))
    shrinks = all(s >= t for s, t in sizes)
    if not shrinks and any(s > t for s, t in sizes):
        raise Refusal(f"fitnet cannot regress maps of size {size_s} onto {size_t}: one is higher, the other wider")
    high, low = (size_s, size_t) if shrinks else (size_t, size_s)
    ratio = high[0] // low[0]
    options: dict[str, Any]
    if [ratio * n for n in low] != high:  # no common ratio: the kernel bridges the difference
        options = {"kernel_size": [1 + n - m for n, m in zip(high, low, strict=True)]}
    elif shrinks:
        options = {"kernel_size": 2 * ratio - 1, "stride": ratio, "padding": ratio - 1}
    else:
        options = {"kernel_size": ratio + 2 * (ratio // 2), "stride": ratio, "padding": ratio // 2}
    kind = nn.Conv2d if shrinks else nn.ConvTranspose2d
    return nn.Sequential(kind(channels_s, channels_t, **options), nn.BatchNorm2d(channels_t), nn.ReLU())


@dataclass(frozen=True)
class FitNet(Method):
    """Hints: regress a block's features onto the teacher's (Romero et al. 2015)."""

    family = "features"
    paper = Paper("FitNets: Hints for Thin Deep Nets", "ICLR", 2015, "1412.6550")

    weight: float = knob(100.0, "weight of the hint", low=0.1, high=1000.0, log=True)
    block: int = knob(2, "which block, of student and teacher, is the hint", low=1, high=8)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=(f"block{self.block}",), teacher=(f"block{self.block}",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        shape_s, *shapes_t = (map_shape(p.taps[f"block{self.block}"]) for p in (learner, *teachers.values()))
        return nn.ModuleList(regressor(shape_s, shape_t) for shape_t in shapes_t)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        map_s, *maps_t = (as_map(out.taps[f"block{self.block}"]) for out in (learner, *teachers.values()))
        pairs = zip(heads.children(), maps_t, strict=True)
        fitnet = mean_of(fitnet_loss(regress(map_s), map_t) for regress, map_t in pairs)
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "fitnet": self.weight * fitnet,
        }

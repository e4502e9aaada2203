"""A Comprehensive Overhaul of Feature Distillation (OFD).

B. Heo, J. Kim, S. Yun, H. Park, N. Kwak, J. Y. Choi. ICCV 2019.

    m_d = E[x | x < 0], x ~ N(beta_d, gamma_d^2)     T = max(t, m)     d(T, s) = 0 where s <= T <= 0, else (T - s)^2
    L = CE + w sum_l 2^(l - last) mean_b sum d(T^l, r(s^l))

t is the teacher's map (B, D, H, W), r a 1x1 convolution + BatchNorm of the student's; beta, gamma are of the last
BatchNorm of the teacher's block, so the margin m is closed form. What the teacher suppresses need only be suppressed.
w = 1e-3 and halving from the last block backwards are the released values.

Deviations: the paper's features come before the last ReLU of a block; taps come behind it. Where the teacher's value is
exactly 0, the ReLU has cut it off, and T is the margin itself. The released code keeps the teacher's BatchNorm in
training mode. A block without BatchNorm has by symmetry m = -E[t | t > 0], from the batch. The larger map is
average-pooled to the smaller (the student's after r, the teacher's as T); blocks are paired from the last backwards.
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


def margin(mean_D: Tensor, deviation_D: Tensor) -> Tensor:
    """E[x | x < 0] of normal numbers; -3 deviations where fewer than one in a thousand is negative; (D,)."""
    negative_D = torch.special.ndtr(-mean_D / deviation_D)
    density_D = torch.exp(-0.5 * (mean_D / deviation_D).square()) / (2 * torch.pi) ** 0.5
    found_D = mean_D - deviation_D * density_D / negative_D.clamp_min(1e-3)
    return torch.where(negative_D > 1e-3, found_D, -3 * deviation_D)


def above_margin(map_t_BDHW: Tensor, margin_D: Tensor) -> Tensor:
    """T: the teacher's map, at least the margin; the margin where a ReLU has cut it off."""
    margin_D11 = margin_D[:, None, None].to(map_t_BDHW.dtype)
    return torch.where(map_t_BDHW == 0, margin_D11, torch.maximum(map_t_BDHW, margin_D11))


def mirrored(map_t_BDHW: Tensor) -> Tensor:
    """-E[t | t > 0] of each channel of this batch; (D,)."""
    positive = (map_t_BDHW > 0).to(map_t_BDHW.dtype)
    return -(positive * map_t_BDHW).sum((0, 2, 3)) / positive.sum((0, 2, 3)).clamp_min(1)


def partial_distance(target_BDHW: Tensor, regressed_BDHW: Tensor) -> Tensor:
    """Mean over examples of the sum of d; scalar."""
    counts = (regressed_BDHW > target_BDHW) | (target_BDHW > 0)
    return (counts * (target_BDHW - regressed_BDHW).square()).sum() / len(target_BDHW)


def norm_of(profile: Profile, name: str, channels: int) -> Any:
    """The last affine BatchNorm of a block's channels, or None."""
    model: Any = profile.model
    tap = model.kd_taps[name]
    inside = model.get_submodule(tap.path).modules() if tap.side == "output" else ()
    found = [m for m in inside if isinstance(m, nn.BatchNorm2d) and m.affine and m.num_features == channels]
    return found[-1] if found else None


def connector(shape_s: tuple[int, ...], shape_t: tuple[int, ...], norm: Any) -> nn.Module:
    """`regress`, and the buffer `margin` where there is a BatchNorm."""
    made, channels = nn.Module(), map_shape(shape_t)[0]
    made.regress = nn.Sequential(nn.Conv2d(map_shape(shape_s)[0], channels, 1, bias=False), nn.BatchNorm2d(channels))
    made.register_buffer(
        "margin", None if norm is None else margin(norm.bias.detach(), norm.weight.detach().abs().clamp_min(1e-6))
    )
    return made


@dataclass(frozen=True)
class OFD(Method):
    """Overhauled features: partial distance with a margin for what the teacher suppresses (Heo et al. 2019)."""

    family = "features"
    paper = Paper("A Comprehensive Overhaul of Feature Distillation", "ICCV", 2019, "1904.01866")

    weight: float = knob(1e-3, "weight of the distance, a sum over features", low=1e-6, high=1.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*",), teacher=("block*",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        return nn.ModuleList(self._connectors(learner, teacher) for teacher in teachers.values())

    def _connectors(self, learner: Profile, teacher: Profile) -> nn.ModuleList:
        names = [name for name in teacher.taps if name.startswith("block")]
        pairs = zip(reversed(learner.blocks), reversed(names), strict=False)
        shapes = [(s, name, teacher.taps[name]) for s, name in pairs]
        return nn.ModuleList(connector(s, t, norm_of(teacher, name, map_shape(t)[0])) for s, name, t in shapes)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads, teachers.values(), strict=True)
        ofd = mean_of(self._blocks(connectors, learner, teacher) for connectors, teacher in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "ofd": self.weight * ofd}

    def _blocks(self, connectors: Any, learner: Out, teacher: Out) -> Tensor:
        terms = []
        pairs = last_backwards(learner.blocks, teacher.blocks)
        for back, (head, (s, t)) in enumerate(zip(connectors, pairs, strict=True)):
            map_t = wide(as_map(t))
            target = above_margin(map_t, mirrored(map_t) if head.margin is None else head.margin)
            regressed, target = pool_to_smaller(wide(head.regress(as_map(s))), target)
            terms.append(partial_distance(target, regressed) / 2**back)
        return torch.stack(terms).sum()

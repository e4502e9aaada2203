"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation (OFA-KD).

Z. Hao, J. Guo, K. Han, Y. Tang, H. Hu, Y. Wang, C. Xu. NeurIPS 2023.

    l(z) = -mean_b sum_c [ (p_t,c + 1[c = y])^epsilon - 1[c = y] ] ln softmax(z)_c
    L = w_ce CE + w_kd l(z_s) + w sum_i l(z_i)

z_i (B, C) are the logits of a branch behind stage i of the student, p_t the teacher's probabilities at temperature 1, y
the label (of mixed images the one with the larger share). epsilon = 1 is KD plus the teacher's entropy; above, the
target counts for more. So nothing but answers is compared, whatever the architectures. Weights 1 and epsilon 1 are the
released CIFAR-100 values (1.5 for ResNet-18 from DeiT-T on ImageNet).

Branches, as released: maps go through separable convolutions of stride 2, one for each stage that follows, to the
larger of both networks' last widths; tokens are merged 2 x 2 and go through as many transformer blocks (at least one)
with 4 heads; then mean and linear layer. Of more than four blocks four are taken, evenly spaced, the last among them.
Deviations: tokens that form no even grid, such as those of a sequence, are not merged, and a class token in front of a
grid is left out when it is merged; a vector (of a perceptron) goes to the linear layer at once; maps of the last stage
through a 1 x 1 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import as_map, log_probabilities, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, knob

if TYPE_CHECKING:
    from torch import Tensor

STAGES = 4


def enhanced(logits_s_BC: Tensor, logits_t_BC: Tensor, labels_B: Tensor, epsilon: float) -> Tensor:
    """l(z_s), with the teacher's distribution enhanced at the label; nats, scalar."""
    target_BC = F.softmax(wide(logits_t_BC), dim=1)
    hot_BC = target_BC.new_zeros(target_BC.shape).scatter(1, labels_B[:, None], 1.0)
    weight_BC = (target_BC + hot_BC).pow(epsilon) - hot_BC
    return -(weight_BC * log_probabilities(logits_s_BC)).sum(1).mean()


def stages(count: int) -> list[int]:
    """Which of `count` blocks end a stage, from 0: all of up to four, else four, evenly spaced, the last among them."""
    kept = min(count, STAGES)
    return [math.ceil(count * (i + 1) / kept) - 1 for i in range(kept)]


def separable(width_in: int, width: int) -> list[nn.Module]:
    """Depthwise convolution of stride 2 and pointwise one, BatchNorm, ReLU."""
    return [
        nn.Conv2d(width_in, width_in, 3, stride=2, padding=1, groups=width_in, bias=False),
        nn.Conv2d(width_in, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


def map_branch(width_in: int, width: int, following: int) -> nn.Sequential:
    """Maps (B, width_in, H, W) -> (B, width), with a separable convolution for each `following` stage."""
    layers: list[nn.Module] = []
    for left in reversed(range(following)):
        layers += separable(width_in, grown := min(2 * width_in, width) if left else width)
        width_in = grown
    layers = layers or [nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def merges(tokens: int) -> bool:
    """Whether so many tokens, or all but a first one, form a grid of even sides larger than 2."""
    side = math.isqrt(tokens)
    return side > 2 and side % 2 == 0 and tokens - side * side in (0, 1)


def merged(tokens_BLD: Tensor) -> Tensor:
    """Each 2 x 2 neighbours of the grid as one token (B, L / 4, 4 D)."""
    return F.pixel_unshuffle(as_map(tokens_BLD), 2).flatten(2).transpose(1, 2)


def token_branch(tokens: int, width: int, following: int) -> nn.Sequential:
    """Tokens (B, L, D), already merged, -> (B, L, D): transformer blocks, at least one."""
    heads = math.gcd(4, width)
    blocks = [
        nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True)
        for _ in range(max(following, 1))
    ]
    return nn.Sequential(nn.Linear(4 * width, width) if merges(tokens) else nn.Identity(), *blocks)


def branch(shape: tuple[int, ...], width: int, following: int, classes: int) -> nn.Module:
    """What `answer` needs for a block's feature of `shape` (without the batch)."""
    made = nn.Module()
    made.body = nn.Identity()
    if len(shape) == 3:
        made.body = map_branch(shape[0], width, following)
    elif len(shape) == 2:
        made.body = token_branch(*shape, following)
    made.classifier = nn.Linear(width if len(shape) == 3 else shape[-1], classes)
    return made


def answer(branch: Any, feature: Tensor) -> Tensor:
    """A branch's logits (B, classes) of a map (B, D, H, W), tokens (B, L, D) or a vector (B, D)."""
    if feature.ndim == 3:
        body_BLD = branch.body(merged(feature) if merges(feature.shape[1]) else feature)
        return branch.classifier(body_BLD.mean(1))
    return branch.classifier(branch.body(feature))


@dataclass(frozen=True)
class OFA(Method):
    """One-for-all: branches behind the student's stages answer, and learn the teacher's answers (Hao et al. 2023)."""

    family = "features"
    paper = Paper(
        "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
        "NeurIPS",
        2023,
        "2310.19444",
    )

    epsilon: float = knob(1.0, "exponent of the target's enhancement; 1: none", low=0.5, high=3.0)
    weight: float = knob(1.0, "weight of each branch", low=0.01, high=10.0, log=True)
    kd_weight: float = knob(1.0, "weight of the student's own logits", low=0.0, high=10.0)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("block*", "pooled"), teacher=("pooled",), categorical=True)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        width = max(profile.taps["pooled"][0] for profile in (learner, *teachers.values()))
        shapes = [learner.blocks[i] for i in stages(len(learner.blocks))]
        following = reversed(range(len(shapes)))
        return nn.ModuleList(branch(s, width, n, learner.classes) for s, n in zip(shapes, following, strict=True))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        blocks = learner.blocks
        features = [blocks[i] for i in stages(len(blocks))]
        branches = [answer(head, feature) for head, feature in zip(heads, features, strict=True)]
        kd = mean_of(enhanced(learner.rows, t.rows, batch.labels, self.epsilon) for t in teachers.values())
        ofa = [mean_of(enhanced(z, t.rows, batch.labels, self.epsilon) for t in teachers.values()) for z in branches]
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "ofa_kd": self.kd_weight * kd,
            "ofa": self.weight * sum(ofa[1:], ofa[0]),
        }

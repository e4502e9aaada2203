"""ShuffleNet for small images: `ShuffleNetV1` of the field's CIFAR tables, three groups.

X. Zhang, X. Zhou, M. Lin, J. Sun: ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices,
CVPR 2018, table 1 (g = 3): three stages of 4, 8 and 4 units with 240, 480 and 960 channels, each starting with
stride 2, where the unit's input is pooled and appended instead of added.

Deviations from the paper, all as in RepDistiller and mdistiller: the stem is a 1x1 convolution of stride 1 without
pooling, so that at 32x32 the last map is 4x4; a ReLU follows the depthwise convolution; the bottleneck of a unit of
stride 2 is a quarter of the channels that its convolutions add, not of all. Module names are theirs, so that their
checkpoints load; pooling is global at any image size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models.taps import Tap

NAMES = ("ShuffleNetV1",)

GROUPS = 3
STEM = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units


def shuffle(x: Tensor, groups: int) -> Tensor:
    """(B, D, H, W) -> the same shape: channel j of group i (of D / groups) becomes channel j * groups + i."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Unit(nn.Module):
    """1x1 in groups, shuffle, 3x3 depthwise, 1x1 in groups; `channels` are those that this path adds or appends."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        middle = channels // 4
        self.groups = 1 if channels_in == STEM else GROUPS  # the stem's few channels are not divided
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Stride 1: (B, channels, H, W) -> the same; stride 2: (B, D, H, W) -> (B, channels + D, H / 2, W / 2)."""
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        if self.stride == 1:
            return F.relu(y + x)
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


class ShuffleNetV1(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes)."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        widths = (STEM, *(width for width, _ in STAGES))
        self.conv1 = nn.Conv2d(channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Unit(width_in, width - width_in, 2), *(Unit(width, width, 1) for _ in range(units - 1)))
            for width_in, (width, units) in zip(widths, STAGES, strict=False)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[-1], classes)
        self.kd_taps = {f"block{i}": Tap(f"layer{i}") for i in (1, 2, 3)} | {"pooled": Tap("linear", "input")}
        self.kd_classifier = "linear"

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


def build(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """Any image size; no options."""
    return ShuffleNetV1(classes, channels)

"""ShuffleNet V2 for small images: `ShuffleNetV2` of the field's CIFAR tables, at width 1.

N. Ma, X. Zhang, H.-T. Zheng, J. Sun: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV
2018, table 5: three stages of 4, 8 and 4 units with 116, 232 and 464 channels, each starting with stride 2, then a 1x1
convolution to 1024 channels, global average pooling, one linear layer.

Deviation from the paper, as in RepDistiller and mdistiller: the stem is a 1x1 convolution of stride 1 without pooling,
so that at 32x32 the last map is 4x4. A 1x1 convolution comes between `block3` and `pooled`. Module names are theirs, so
that their checkpoints load; pooling is global at any image size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models.shufflenet_v1 import shuffle
from kdbench.models.taps import Tap

NAMES = ("ShuffleNetV2",)

STEM = 24
UNITS = (4, 8, 4)
WIDTHS = {  # of the stages and of the last convolution
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


class Unit(nn.Module):
    """Half of the channels pass, half go through 1x1, 3x3 depthwise and 1x1; then all are shuffled in two groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _pointwise(half, half)
        self.conv2, self.bn2 = _depthwise(half, 1)
        self.conv3, self.bn3 = _pointwise(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        passed, y = x.chunk(2, dim=1)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        return shuffle(torch.cat([passed, F.relu(self.bn3(self.conv3(y)))], dim=1), groups=2)


class DownUnit(nn.Module):
    """Two paths of stride 2 over all channels, each ending in half of the new ones, shuffled in two groups."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _depthwise(channels_in, 2)
        self.conv2, self.bn2 = _pointwise(channels_in, half)
        self.conv3, self.bn3 = _pointwise(channels_in, half)
        self.conv4, self.bn4 = _depthwise(half, 2)
        self.conv5, self.bn5 = _pointwise(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels, H / 2, W / 2)."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffle(torch.cat([left, right], dim=1), groups=2)


class ShuffleNetV2(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes)."""

    def __init__(self, widths: tuple[int, int, int, int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(DownUnit(width_in, width), *(Unit(width) for _ in range(units - 1)))
            for width_in, width, units in zip((STEM, *widths), widths, UNITS, strict=False)
        )
        self.conv2, self.bn2 = _pointwise(widths[2], widths[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[3], classes)
        self.kd_taps = {f"block{i}": Tap(f"layer{i}") for i in (1, 2, 3)} | {"pooled": Tap("linear", "input")}
        self.kd_classifier = "linear"

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(F.relu(self.bn2(self.conv2(x)))).flatten(1))


def build(name: str, *, classes: int, channels: int, size: int, width: float = 1.0) -> nn.Module:
    """Any image size; `width` is one of the paper's. Raises ValueError for any other."""
    if isinstance(width, bool) or width not in WIDTHS:
        raise ValueError(f"option 'width' must be one of {', '.join(map(str, WIDTHS))}, not {width!r}")
    return ShuffleNetV2(WIDTHS[width], classes, channels)


def _pointwise(channels_in: int, channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels)


def _depthwise(channels: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return conv, nn.BatchNorm2d(channels)

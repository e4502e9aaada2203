"""MobileNetV2 for small images: `MobileNetV2` of the field's CIFAR tables, half as wide as the original.

M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR
2018, table 2. The form is that of RepDistiller (`mobile_half`) and mdistiller, which is that of X. Jin et al.:
Knowledge Distillation via Route Constrained Optimization, ICCV 2019.

Deviations from the paper: all widths but the last (1280) are halved and not rounded to multiples of 8; stages start
with strides 1, 1, 2, 2, 1, 2, 1 behind a stem of stride 2, so that at 32x32 the last map is 2x2; ReLU, not ReLU6; the
first stage has an expansion layer too (of factor 1); no dropout. `block1` to `block4` are the last stages of each
resolution, where the field distils; a 1x1 convolution comes between `block4` and `pooled`. Module names are
RepDistiller's, so that its checkpoints load; pooling is global at any image size.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.models.taps import Tap

NAMES = ("MobileNetV2",)

STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST = 32, 1280
TAPPED = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 back without activation; plus x where shapes agree."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = channels_in * expansion
        self.conv = nn.Sequential(
            *_conv(channels_in, middle, 1),
            *_conv(middle, middle, 3, stride, groups=middle),
            nn.Conv2d(middle, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes); `width` scales all channels, the last layer only above 1."""

    def __init__(self, width: float, classes: int, channels: int) -> None:
        super().__init__()
        previous, last = int(STEM * width), int(LAST * max(width, 1.0))
        self.conv1 = _conv(channels, previous, 3, stride=2)
        self.blocks = nn.ModuleList()
        for expansion, full, count, stride in STAGES:
            current = int(full * width)
            first = InvertedResidual(previous, current, stride, expansion)
            others = (InvertedResidual(current, current, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *others))
            previous = current
        self.conv2 = _conv(previous, last, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last, classes))
        self.kd_taps = {f"block{i}": Tap(f"blocks.{stage}") for i, stage in enumerate(TAPPED, 1)}
        self.kd_taps["pooled"] = Tap("classifier.0", "input")
        self.kd_classifier = "classifier.0"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        return self.classifier(self.avgpool(self.conv2(x)).flatten(1))


def build(name: str, *, classes: int, channels: int, size: int, width: float = 0.5) -> nn.Module:
    """Any image size; `width` 1.0 is the full width. Raises ValueError for values that make no network."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0.1 <= width <= 4:
        raise ValueError(f"option 'width' must be a number from 0.1 to 4, not {width!r}")
    return MobileNetV2(width, classes, channels)


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

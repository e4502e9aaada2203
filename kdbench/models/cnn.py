"""A plain convolutional network that trains on digits and MNIST within seconds on a CPU.

A stage is `depth` times 3x3 convolution, BatchNorm, ReLU; each stage but the first starts with stride 2. Then global
average pooling and one linear layer. Scale `widths` for a teacher (32, 64, 128) or a student (8, 16, 32).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kdbench.models.taps import Tap

NAMES = ("cnn",)


class Cnn(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes); `block1`, `block2`, ... are the stages."""

    def __init__(self, widths: Sequence[int], depth: int, classes: int, channels: int) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        for stage, (width_in, width) in enumerate(pairwise((channels, *widths))):
            layers: list[nn.Module] = []
            for layer in range(depth):
                stride = 2 if stage and not layer else 1
                conv = nn.Conv2d(width if layer else width_in, width, 3, stride, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            self.stages.append(nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], classes)
        self.kd_taps = {f"block{i + 1}": Tap(f"stages.{i}") for i in range(len(widths))}
        self.kd_taps["pooled"] = Tap("classifier", "input")
        self.kd_classifier = "classifier"

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.stages(x)).flatten(1))


def build(
    name: str, *, classes: int, channels: int, size: int, widths: Sequence[int] = (16, 32, 64), depth: int = 1
) -> nn.Module:
    """Any image size. Raises ValueError for values that make no network."""
    check_widths("widths", widths)
    if not widths:
        raise ValueError("option 'widths' needs at least one stage, for example [16, 32, 64]")
    if type(depth) is not int or depth < 1:
        raise ValueError(f"option 'depth' must be a whole number above 0, not {depth!r}")
    return Cnn(widths, depth, classes, channels)


def check_widths(option: str, widths: Sequence[int]) -> None:
    """Raises ValueError unless `widths` is a list of positive integers."""
    if not isinstance(widths, list | tuple) or not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(f"option '{option}' must be a list of whole numbers above 0, not {widths!r}")

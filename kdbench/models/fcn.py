"""A fully convolutional network: maps in, maps of the same size out, for tasks whose rows are pixels.

J. Long, E. Shelhamer, T. Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015: the classifier
is a 1x1 convolution. Here nothing is pooled, so that the smallest maps keep their positions; 3x3 convolutions with
dilations 1, 2, 4, 1, 2, 4, ... (F. Yu, V. Koltun, ICLR 2016) let each position see all of a small map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kdbench.models.cnn import check_widths
from kdbench.models.taps import Tap

NAMES = ("fcn",)
DILATIONS = (1, 2, 4)


class Fcn(nn.Module):
    """Maps (B, channels, H, W) -> (B, outputs, H, W); `block1`, `block2`, ... are the layers, maps (B, D, H, W)."""

    def __init__(self, channels: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for number, (width_in, width) in enumerate(pairwise((channels, *widths))):
            far = DILATIONS[number % len(DILATIONS)]
            conv = nn.Conv2d(width_in, width, 3, padding=far, dilation=far, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.layers.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
        self.classifier = nn.Conv2d(widths[-1], outputs, 1)
        self.kd_taps = {f"block{i + 1}": Tap(f"layers.{i}") for i in range(len(widths))}
        self.kd_classifier = "classifier"

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x))


def build(name: str, *, outputs: int, shape: Sequence[int], widths: Sequence[int] = (16, 16, 16)) -> nn.Module:
    """Any size of maps. Raises ValueError for values that make no network, and for examples that are no maps."""
    check_widths("widths", widths)
    if not widths:
        raise ValueError("option 'widths' needs at least one layer, for example [16, 16, 16]")
    if len(shape) != 3:
        raise ValueError(f"it takes maps (channels, H, W), and the examples are {tuple(shape)}")
    return Fcn(shape[0], widths, outputs)

"""A multilayer perceptron: the smallest student of images, and the network of tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kdbench.models.cnn import check_widths
from kdbench.models.taps import Tap

NAMES = ("mlp",)


class Mlp(nn.Module):
    """Images (B, channels, H, W) with channels * H * W = `features`, or rows (B, features) -> (B, outputs).

    Hidden layers are linear with ReLU; `block1`, `block2`, ... are what they answer, vectors (B, D).
    """

    def __init__(self, features: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        layers = (nn.Sequential(nn.Linear(n, m), nn.ReLU()) for n, m in pairwise((features, *hidden)))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear((features, *hidden)[-1], outputs)
        self.kd_taps = {f"block{i + 1}": Tap(f"layers.{i}") for i in range(len(hidden))}
        self.kd_taps["pooled"] = Tap("classifier", "input")
        self.kd_classifier = "classifier"

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x.flatten(1)))


def build(name: str, *, outputs: int, features: int, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """`hidden: []` is a linear model. Raises ValueError for values that make no network."""
    check_widths("hidden", hidden)
    return Mlp(features, hidden, outputs)

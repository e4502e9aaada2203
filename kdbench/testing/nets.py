"""Tiny networks with every kind of feature: maps, tokens, vectors, and a real transformer of timm's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.models.taps import Tap

CLASSES, CHANNELS, SIZE = 5, 3, 8


class Net(nn.Module):
    """Blocks in turn, mean over places, one linear classifier; images (B, 3, 8, 8) -> rows (B, classes)."""

    def __init__(self, blocks: Sequence[nn.Module], features: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(features, classes)
        self.kd_taps = {f"block{i + 1}": Tap(f"blocks.{i}") for i in range(len(blocks))}
        self.kd_taps["pooled"] = Tap("fc", "input")
        self.kd_classifier = "fc"

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.fc(self.pooled(self.blocks(x)))
        return rows

    def pooled(self, x: Tensor) -> Tensor:
        """The last block's maps (B, D, H, W), tokens (B, L, D) or vectors (B, D) -> (B, D)."""
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def maps(widths: Sequence[int] = (4, 6, 8), strides: Sequence[int] = (1, 2, 2)) -> Net:
    """Blocks answer maps (B, D, H, W); sizes 8, 4, 2 by default."""
    inputs = (CHANNELS, *widths)
    layers = zip(inputs, widths, strides, strict=False)
    return Net([nn.Sequential(nn.Conv2d(i, o, 3, s, padding=1), nn.ReLU()) for i, o, s in layers], widths[-1])


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels, the mean of them in front, the last `tokens` of these."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.embed, self.tokens = nn.Conv2d(CHANNELS, width, 4, stride=4), tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)[:, -self.tokens :]


def tokens(width: int = 6, count: int = 4) -> Net:
    """Blocks answer tokens (B, L, D): 4 of them, or 5 with a class token in front, or 3, which form no square."""
    blocks = [Tokens(width, count), *(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(2))]
    return Net(blocks, width)


def vectors(width: int = 6) -> Net:
    """Blocks answer vectors (B, D), like those of a multilayer perceptron."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIZE * SIZE, width), nn.ReLU())
    return Net([first, *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))], width)


def transformer(width: int = 8, depth: int = 3) -> nn.Module:
    """timm's vision transformer, with patch embedding, class token and attention under timm's own names."""
    options = {"patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 2}
    return models.build("vit_tiny_patch16_224", options, classes=CLASSES, channels=CHANNELS, size=SIZE)


STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "maps": maps,
    "coarse maps": lambda: maps((4, 6, 8), (2, 2, 2)),
    "two blocks": lambda: maps((6, 8), (2, 2)),
    "tokens": tokens,
    "tokens with a class token": lambda: tokens(count=5),
    "tokens of no square": lambda: tokens(count=3),
    "vectors": vectors,
}
# For methods that refuse all of the above; here, because importing timm takes longer than a whole contract.
TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {"transformer": transformer, "two transformers": transformer}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose initial weights come from a seed; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def teacher(student: str = "maps") -> nn.Module:
    """Other widths and sizes than any student, one block more; its second block has weights of a student's shape.

    The teacher of "two transformers" is a wider and deeper transformer, all others are convolutional.
    """

    def wider() -> nn.Module:
        return transformer(16, 4) if student == "two transformers" else maps((6, 8, 10, 12), (1, 1, 2, 1))

    return seeded(wider, seed=9).eval().requires_grad_(False)

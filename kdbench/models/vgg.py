"""VGG with BatchNorm for small images: `vgg8` to `vgg19` of the field's CIFAR tables.

K. Simonyan, A. Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, table 1
(vgg11: A, vgg13: B, vgg16: D, vgg19: E; vgg8 has one convolution a stage). Five stages of 3x3 convolutions with
64, 128, 256, 512 and 512 channels.

Deviations from the paper, all as in RepDistiller and mdistiller: BatchNorm after every convolution, global average
pooling and one linear layer instead of three, and only three 2x2 poolings (after the first three stages; from 64x64
pixels on a fourth), so that at 32x32 the last map is 4x4. `block1` to `block4` are the second to the fifth stage, since
the field does not distil from the first. Module names are theirs, so that their checkpoints load. timm's VGGs of the
same names (ImageNet's, without BatchNorm) are reached with a tag: `vgg13.tv_in1k`.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.models.taps import Tap

NAMES = ("vgg8", "vgg11", "vgg13", "vgg16", "vgg19")

WIDTHS = (64, 128, 256, 512, 512)
LAYERS = {  # convolutions of each stage
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class Vgg(nn.Module):
    """Images (B, channels, size, size) -> logits (B, classes); `layers` convolutions in each of five stages."""

    def __init__(self, layers: tuple[int, ...], classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _stage(width_in, width, count)
            for width_in, width, count in zip((channels, *WIDTHS), WIDTHS, layers, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2) if size >= 64 else nn.Identity()
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        self.kd_taps = {f"block{i}": Tap(f"block{i}") for i in (1, 2, 3, 4)} | {"pooled": Tap("classifier", "input")}
        self.kd_classifier = "classifier"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.block0(x))
        x = self.pool(self.block1(x))
        x = self.pool(self.block2(x))
        x = self.block4(self.pool3(self.block3(x)))
        return self.classifier(self.pool4(x).flatten(1))


def build(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """No options. Raises ValueError for images too small for three poolings."""
    if size < 8:
        raise ValueError(f"{name} halves the image three times and needs at least 8x8 pixels, not {size}x{size}")
    return Vgg(LAYERS[name], classes, channels, size)


def _stage(channels_in: int, channels: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in range(count):
        conv = nn.Conv2d(channels if layer else channels_in, channels, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

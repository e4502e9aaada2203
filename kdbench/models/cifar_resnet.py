"""ResNets for small images: the student and teacher networks of the field's CIFAR tables.

K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2. Depth 6n + 2:
a 3x3 convolution, three stages of n basic blocks with 16, 32 and 64 channels, the second and third of stride 2, global
average pooling, one linear layer. `resnet8x4` and `resnet32x4` have channels 32-64-128-256.

Deviation from the paper: where a shape changes, the shortcut is a 1x1 convolution with BatchNorm (the paper's option
B), not zero padding (its option A). That is the form of RepDistiller and mdistiller, hence of the tables that results
are compared with; it costs resnet20 2,752 parameters and 0.26 M multiply-accumulates. Module names are theirs too, so
that their checkpoints load. One more difference, from both: pooling is global at any image size, not 8x8.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.models.taps import Tap

NAMES = (
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
)


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), with 3x3 convolutions."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if stride != 1 or channels_in != channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes); `depth` is 6n + 2, `widths` are of stem and stages."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)
        self.kd_layers = ("layer1", "layer2", "layer3")
        self.kd_taps = {f"block{i}": Tap(f"layer{i}") for i in (1, 2, 3)} | {"pooled": Tap("fc", "input")}
        self.kd_classifier = "fc"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def build(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """`resnet20` and its like, at any image size; no options."""
    depth, _, wide = name.removeprefix("resnet").partition("x")
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    return CifarResNet(int(depth), widths, classes, channels)


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

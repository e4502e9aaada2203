"""ImageNet's ResNets with a stem for small images: `ResNet18`, `ResNet34` and `ResNet50` of the field's CIFAR tables.

K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition, CVPR 2016, table 1. Deviations, as in
RepDistiller and mdistiller: the stem is a 3x3 convolution of stride 1 without pooling, so that at 32x32 the last map is
4x4; the stride of a bottleneck is in its 3x3 convolution. Module names are theirs, so that their checkpoints load.
`resnet18`, `resnet34` and `resnet50`, in lower case, are timm's, with ImageNet's stem.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models.taps import Tap

NAMES = ("ResNet18", "ResNet34", "ResNet50")

WIDTHS = (64, 128, 256, 512)
BLOCKS = {"ResNet18": (2, 2, 2, 2), "ResNet34": (3, 4, 6, 3), "ResNet50": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), with 3x3 convolutions to `width` channels."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """As `BasicBlock`, with 1x1 to `width`, 3x3 and 1x1 to 4 * `width` channels."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels = self.expansion * width
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes); `blocks` in each of four stages."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...], classes: int, channels: int
    ) -> None:
        super().__init__()
        outputs = tuple(block.expansion * width for width in WIDTHS)
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(block(before, width, 1 if stage == 0 else 2), *(block(after, width, 1) for _ in range(n - 1)))
            for stage, (before, after, width, n) in enumerate(
                zip((WIDTHS[0], *outputs), outputs, WIDTHS, blocks, strict=False)
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(outputs[-1], classes)
        self.kd_taps = {f"block{i}": Tap(f"layer{i}") for i in (1, 2, 3, 4)} | {"pooled": Tap("linear", "input")}
        self.kd_classifier = "linear"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.avgpool(x).flatten(1))


def build(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """Any image size; no options."""
    return ResNet(Bottleneck if name == "ResNet50" else BasicBlock, BLOCKS[name], classes, channels)


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and channels_in == channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

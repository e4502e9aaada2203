"""Wide residual networks for small images, `wrn_<depth>_<width>` of the field's CIFAR tables.

S. Zagoruyko, N. Komodakis: Wide Residual Networks, BMVC 2016. Depth 6n + 4, width k: a 3x3 convolution, three stages of
n pre-activated blocks with 16k, 32k and 64k channels, the second and third of stride 2, BatchNorm, ReLU, global average
pooling, one linear layer. No dropout.

`block3` is the sum that leaves the last stage, as in RepDistiller and mdistiller; BatchNorm and ReLU come between it
and `pooled`, so `pooled` is not its mean. Module names are theirs, so that their checkpoints load.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from kdbench.models.taps import Tap

NAMES = ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")


class PreActivatedBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), 3x3; for new channels 1x1 conv(relu(bn(x))) takes the place of x."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = None if channels_in == channels else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes); `depth` is 6n + 4."""

    def __init__(self, depth: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = _stage(16, 16 * width, blocks, stride=1)
        self.block2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, classes)
        self.kd_taps = {f"block{i}": Tap(f"block{i}") for i in (1, 2, 3)} | {"pooled": Tap("fc", "input")}
        self.kd_classifier = "fc"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.avgpool(self.relu(self.bn1(x))).flatten(1))


def build(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """`wrn_40_2` and its like, at any image size; no options."""
    depth, width = map(int, name.removeprefix("wrn_").split("_"))
    return WideResNet(depth, width, classes, channels)


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivatedBlock(channels_in, channels, stride)
    layer = nn.Sequential(first, *(PreActivatedBlock(channels, channels, 1) for _ in range(blocks - 1)))
    return nn.Sequential(OrderedDict(layer=layer))

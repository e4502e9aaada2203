"""The networks of the field's CIFAR tables: sizes against published ones, shapes of the taps, work, gradients."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench import models
from kdbench.errors import UserError
from kdbench.models.shufflenet_v1 import shuffle
from kdbench.models.size import count
from kdbench.models.taps import Tapped

# Millions of parameters at 100 classes as the field's tables print them; exact parameters; MACs of a 32x32 image.
SIZES = {
    "resnet8x4": ("1.23", 1_233_540, 177_071_104),
    "resnet32x4": ("7.43", 7_433_860, 1_083_040_768),
    "wrn_16_1": ("0.18", 180_916, 26_663_168),
    "wrn_16_2": ("0.70", 703_284, 101_118_464),
    "wrn_40_1": ("0.57", 569_780, 83_286_272),
    "wrn_40_2": ("2.26", 2_255_156, 327_610_880),
    "vgg8": ("3.97", 3_965_028, 96_192_512),
    "vgg11": ("9.28", 9_277_284, 209_438_720),
    "vgg13": ("9.46", 9_462_180, 284_936_192),
    "vgg16": ("14.77", 14_774_436, 398_182_400),
    "vgg19": ("20.09", 20_086_692, 511_428_608),
    "MobileNetV2": ("0.81", 812_836, 6_523_648),
    "ShuffleNetV1": ("0.95", 949_258, 38_691_456),
    "ShuffleNetV2": ("1.36", 1_355_528, 44_504_448),
    "ResNet18": ("11.22", 11_220_132, 555_468_800),
    "ResNet34": ("21.33", 21_328_292, 1_159_448_576),
    "ResNet50": ("23.71", 23_705_252, 1_298_014_208),
}
VGG = [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]
WIDE = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
# Blocks, then the width of `pooled`; at 32x32, as the field distils them.
TAPS = {
    "resnet8x4": (WIDE, 256),
    "resnet32x4": (WIDE, 256),
    "wrn_16_1": ([(16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
    "wrn_16_2": ([(32, 32, 32), (64, 16, 16), (128, 8, 8)], 128),
    "wrn_40_1": ([(16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
    "wrn_40_2": ([(32, 32, 32), (64, 16, 16), (128, 8, 8)], 128),
    **dict.fromkeys(("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"), (VGG, 512)),
    "MobileNetV2": ([(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)], 1280),
    "ShuffleNetV1": ([(240, 16, 16), (480, 8, 8), (960, 4, 4)], 960),
    "ShuffleNetV2": ([(116, 16, 16), (232, 8, 8), (464, 4, 4)], 1024),
    **dict.fromkeys(("ResNet18", "ResNet34"), ([(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)], 512)),
    "ResNet50": ([(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)], 2048),
}


def made(name: str, size: int = 32, channels: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, options, classes=100, channels=channels, size=size)


def test_every_network_of_the_table_is_there() -> None:
    assert set(SIZES) == set(TAPS)
    assert set(SIZES) <= set(models.own_names())


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_work(name: str) -> None:
    published, parameters, macs = SIZES[name]
    model = made(name)
    assert count(model, (3, 32, 32)) == (parameters, macs)
    assert f"{parameters / 1e6:.2f}" == published


@pytest.mark.parametrize("name", SIZES)
def test_taps_gradients_and_work_by_hand(name: str) -> None:
    """One forward and backward pass; MACs are summed again from the shapes of each convolution and linear layer."""
    model, summed = made(name), []

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        fan_in = prod(module.weight.shape[1:])  # type: ignore[union-attr, arg-type]
        summed.append(output.numel() // len(output) * fan_in)

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(add) for module in layers]
    out = Tapped(model, "student", ("block*", "pooled"))(torch.randn(2, 3, 32, 32))
    for handle in handles:
        handle.remove()
    blocks, pooled = TAPS[name]
    assert [tuple(block.shape[1:]) for block in out.blocks] == blocks
    assert list(out.taps) == [*(f"block{i + 1}" for i in range(len(blocks))), "pooled"]
    assert out.pooled.shape == (2, pooled)
    assert out.rows.shape == (2, 100)
    assert len(summed) == len(layers)  # each layer runs once
    assert sum(summed) == SIZES[name][2]
    F.cross_entropy(out.rows, torch.tensor([3, 7])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in SIZES if not name.startswith(("wrn", "MobileNet", "ShuffleNetV2"))])
def test_pooled_is_the_mean_of_the_last_block(name: str) -> None:
    """The classifier's input follows from the last block alone: what SimKD relies on."""
    with torch.no_grad():
        out = Tapped(made(name).eval(), "teacher", ("block-1", "pooled"))(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(out.blocks[-1].mean(dim=(2, 3)), out.pooled)
    assert (out.blocks[-1] >= 0).all()  # after the activation


def test_a_wide_residual_network_is_normalised_after_its_last_block() -> None:
    model = made("wrn_16_2").eval()
    with torch.no_grad():
        out = Tapped(model, "student", ("block-1", "pooled"))(torch.randn(2, 3, 32, 32))
        expected = F.relu(model.bn1(out.blocks[-1])).mean(dim=(2, 3))  # type: ignore[operator]
    torch.testing.assert_close(out.pooled, expected)
    assert (out.blocks[-1] < 0).any()


def test_the_first_wide_block_by_hand() -> None:
    """Where channels change, the shortcut starts from the activated input; elsewhere from the input itself."""
    model = made("wrn_16_2")
    first, second = list(model.get_submodule("block1.layer"))[:2]
    x = torch.randn(3, 16, 8, 8)

    def normalised(z: Tensor) -> Tensor:  # a fresh BatchNorm in training mode
        return (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()

    def expected(block: nn.Module, z: Tensor) -> Tensor:
        weights = {name: p for name, p in block.named_parameters() if "onv" in name}
        a = normalised(z).clamp(min=0)
        y = F.conv2d(a, weights["conv1.weight"], padding=1)
        y = F.conv2d(normalised(y).clamp(min=0), weights["conv2.weight"], padding=1)
        return y + (F.conv2d(a, weights["convShortcut.weight"]) if "convShortcut.weight" in weights else z)

    with torch.no_grad():
        y = first(x.clone())
        torch.testing.assert_close(y, expected(first, x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(second(y.clone()), expected(second, y), atol=1e-4, rtol=1e-4)


def test_shuffling_is_a_transpose_of_groups_and_members() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 3, 5)
    assert shuffle(x, 2).shape == x.shape
    assert shuffle(x, 2)[1, :, 2, 4].tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(x, 3)[0, :, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffle(x, 1), x)
    assert torch.equal(shuffle(shuffle(x, 2), 3), x)


def test_half_of_the_channels_pass_a_shuffle_unit_unchanged() -> None:
    unit = made("ShuffleNetV2").get_submodule("layer1")[1]  # type: ignore[index]
    x = torch.randn(2, 116, 4, 4)
    assert torch.equal(unit(x)[:, 0::2], x[:, :58])
    changed = x.clone()
    changed[:, :58] += 1
    assert torch.equal(unit(changed)[:, 1::2], unit(x)[:, 1::2])  # the other half does not depend on it


def test_a_shuffle_unit_of_stride_2_appends_its_pooled_input() -> None:
    unit = made("ShuffleNetV1").get_submodule("layer1")[0]  # type: ignore[index]
    x = torch.rand(1, 24, 4, 4)  # not negative, so that the last activation leaves it alone
    window = x[0, :, 0:2, 0:2].sum((1, 2)) / 9  # the first 3x3 window, of which five pixels are padding
    torch.testing.assert_close(unit(x)[0, 216:, 0, 0], window)


@pytest.mark.parametrize(
    ("name", "size", "last"),
    [
        *((name, 8, 1) for name in ("vgg8", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")),
        ("wrn_16_1", 28, 7),
        ("vgg8", 28, 3),
        ("vgg8", 63, 7),
        ("vgg8", 64, 4),  # a fourth pooling
        ("MobileNetV2", 64, 4),
        ("ResNet18", 8, 1),
    ],
)
def test_other_sizes_and_one_channel(name: str, size: int, last: int) -> None:
    model = made(name, size, channels=1).eval()
    with torch.no_grad():
        out = Tapped(model, "student", ("block-1",))(torch.zeros(2, 1, size, size))
    assert out.blocks[-1].shape[2:] == (last, last)
    assert out.rows.shape == (2, 100)


def test_widths() -> None:
    """Parameters by closed form: weights of convolutions, two for each BatchNorm channel, the linear layer."""
    halves = {0.5: (24, 48, 96, 1024), 1.0: (58, 116, 232, 1024), 1.5: (88, 176, 352, 1024)}
    for width, (*stages, last) in halves.items():
        total, before = 3 * 24 + 2 * 24, 24
        for half, units in zip(stages, (4, 8, 4), strict=True):
            first = 11 * before + 2 * before * half + half * half + 17 * half
            total += first + (units - 1) * (2 * half * half + 15 * half)
            before = 2 * half
        total += before * last + 2 * last + 100 * (last + 1)
        assert count(made("ShuffleNetV2", width=width), (3, 32, 32))[0] == total
    settings = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for width in (0.5, 1.0):
        before = int(32 * width)
        total = 29 * before
        for expansion, full, blocks in settings:
            for _ in range(blocks):
                middle, after = before * expansion, int(full * width)
                total += before * middle + 13 * middle + middle * after + 2 * after
                before = after
        total += before * 1280 + 2 * 1280 + 100 * 1281
        assert count(made("MobileNetV2", width=width), (3, 32, 32))[0] == total


def test_timm_s_vgg_is_reached_with_a_tag() -> None:
    with torch.device("meta"):
        assert type(made("vgg13.tv_in1k")).__module__ == "timm.models.vgg"
        assert type(made("vgg13")).__module__ == "kdbench.models.vgg"


@pytest.mark.parametrize(
    ("name", "options", "size", "sentence"),
    [
        ("MobileNetV2", {"width": 0}, 32, "option 'width' must be a number from 0.1 to 4, not 0"),
        ("MobileNetV2", {"width": "half"}, 32, "option 'width' must be a number from 0.1 to 4, not 'half'"),
        ("ShuffleNetV2", {"width": 0.7}, 32, "option 'width' must be one of 0.5, 1.0, 1.5, 2.0, not 0.7"),
        ("vgg13", {}, 7, "vgg13 halves the image three times and needs at least 8x8 pixels, not 7x7"),
        ("wrn_40_2", {"depth": 28}, 32, "model 'wrn_40_2' has no option 'depth'; it has no options"),
    ],
)
def test_refused_values(name: str, options: dict, size: int, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        made(name, size, **options)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("wrn_16_1", ["block1.layer.0.bn1.weight", "block2.layer.0.convShortcut.weight", "bn1.bias", "fc.weight"]),
        ("vgg8", ["block0.0.weight", "block0.1.running_var", "block4.0.bias", "classifier.weight"]),
        ("MobileNetV2", ["conv1.0.weight", "blocks.6.0.conv.7.bias", "conv2.1.weight", "classifier.0.bias"]),
        ("ShuffleNetV1", ["layer1.0.conv3.weight", "layer3.3.bn3.weight", "linear.bias"]),
        ("ShuffleNetV2", ["layer1.0.conv5.weight", "layer2.7.bn3.weight", "conv2.weight", "linear.bias"]),
        ("ResNet50", ["layer1.0.shortcut.1.weight", "layer3.5.conv3.weight", "linear.weight"]),
    ],
)
def test_names_of_the_field_s_checkpoints(name: str, entries: list[str]) -> None:
    assert set(entries) <= set(made(name).state_dict())

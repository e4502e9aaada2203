from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench import models
from kdbench.errors import UserError
from kdbench.models import size as flops
from kdbench.models.taps import Tap, profile
from kdbench.plugins import known, own_names, timm_names

CIFAR = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def build(name: str, options: dict | None = None, **changes) -> nn.Module:
    return models.build(name, options or {}, **({"classes": 10, "channels": 3, "size": 32} | changes))


def shapes(model: nn.Module, channels: int = 3, size: int = 32) -> dict[str, tuple[int, ...]]:
    facts = {"classes": 10, "examples": 1, "input_shape": (channels, size, size)}
    return profile(model, "student", ("block*", "pooled"), **facts).taps


# names ---------------------------------------------------------------------------------------------------------------
def test_names_are_timms_own() -> None:
    import timm

    assert set(timm_names()) == set(timm.list_models())
    assert set(CIFAR) | {"resnet8x4", "resnet32x4", "cnn", "mlp"} <= set(own_names())
    # Names of the field's CIFAR tables that timm uses too: kdbench's own are taken, timm's are reached by their tag.
    assert set(own_names()) & set(timm_names()) == {"vgg11", "vgg13", "vgg16", "vgg19"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet20", True), ("resnet18", True), ("resnet18.a1_in1k", True), ("resnet19", False), ("", False)],
)
def test_known(name: str, expected: bool) -> None:
    assert known(name) is expected


def test_names_need_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from kdbench import models, plugins as names; "
        "assert names.known('resnet20') and names.known('vit_tiny_patch16_224') and models.own_names(); "
        "print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# CIFAR ResNets -------------------------------------------------------------------------------------------------------
def resnet_parameters(depth: int, widths: tuple[int, ...], channels: int, classes: int) -> int:
    """The paper's architecture with projections, counted by hand."""

    def conv(cin: int, cout: int, k: int) -> int:
        return cin * cout * k * k + 2 * cout  # and its BatchNorm

    n, total = (depth - 2) // 6, conv(channels, widths[0], 3)
    for cin, cout in pairwise(widths):
        total += conv(cin, cout, 3) + (2 * n - 1) * conv(cout, cout, 3)
        total += conv(cin, cout, 1) if cin != cout else 0
    return total + widths[-1] * classes + classes


@pytest.mark.parametrize("name", [*CIFAR, "resnet8x4", "resnet32x4"])
def test_resnet_parameters_equal_the_closed_form(name: str) -> None:
    with torch.device("meta"):
        model = build(name, classes=100)
    depth, _, wide = name.removeprefix("resnet").partition("x")
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    assert sum(p.numel() for p in model.parameters()) == resnet_parameters(int(depth), widths, 3, 100)


def test_resnet20_has_the_sizes_of_the_fields_tables() -> None:
    parameters, macs = flops.count(build("resnet20"), (3, 32, 32))
    assert parameters == 272_474
    assert round(parameters / 1e6, 2) == 0.27
    assert round(macs / 1e6, 1) == 40.8
    assert flops.count(build("resnet20", classes=100), (3, 32, 32))[0] == 278_324  # RepDistiller's on CIFAR-100


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 8)])
def test_resnet_at_any_image(channels: int, size: int) -> None:
    model = build("resnet8", channels=channels, size=size)
    half, quarter = (size + 1) // 2, ((size + 1) // 2 + 1) // 2
    assert shapes(model, channels, size) == {
        "block1": (16, size, size),
        "block2": (32, half, half),
        "block3": (64, quarter, quarter),
        "pooled": (64,),
    }
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)


def test_resnet_equals_a_forward_written_by_hand() -> None:
    torch.manual_seed(0)
    model = build("resnet8", channels=1, size=8)
    w, x = dict(model.named_parameters()), torch.randn(4, 1, 8, 8)

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        affine = (w[f"{name}.{p}"].view(1, -1, 1, 1) for p in ("weight", "bias"))
        scale, shift = affine
        return (y - mean) / torch.sqrt(var + 1e-5) * scale + shift

    y = norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1").relu()
    for layer, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        z = norm(F.conv2d(y, w[f"{layer}.conv1.weight"], stride=stride, padding=1), f"{layer}.bn1").relu()
        z = norm(F.conv2d(z, w[f"{layer}.conv2.weight"], padding=1), f"{layer}.bn2")
        if stride == 2:
            y = norm(F.conv2d(y, w[f"{layer}.downsample.0.weight"], stride=2), f"{layer}.downsample.1")
        y = (z + y).relu()
    expected = y.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_resnet_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    model = build("resnet56")
    weight = model.layer3[3].conv1.weight  # 64 * 64 * 9 numbers: their deviation is known to half a percent
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    first = model.layer3[0].conv1.weight  # fan_out, not fan_in: 64 channels out, 32 in
    assert first.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_the_seed_decides_the_weights() -> None:
    def made(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build("resnet8").parameters()])

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


# small models --------------------------------------------------------------------------------------------------------
def test_cnn_stages_follow_its_options() -> None:
    model = build("cnn", {"widths": [4, 6, 10, 12], "depth": 2}, channels=1, size=28)
    assert shapes(model, 1, 28) == {
        "block1": (4, 28, 28),
        "block2": (6, 14, 14),
        "block3": (10, 7, 7),
        "block4": (12, 4, 4),
        "pooled": (12,),
    }
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 8


def test_mlp_is_matrix_products() -> None:
    torch.manual_seed(0)
    model, x = build("mlp", {"hidden": [7, 5]}, channels=1, size=4), torch.randn(3, 1, 4, 4)
    w = list(model.parameters())
    expected = ((x.view(3, 16) @ w[0].T + w[1]).relu() @ w[2].T + w[3]).relu() @ w[4].T + w[5]
    torch.testing.assert_close(model(x), expected)
    assert shapes(model, 1, 4) == {"block1": (7,), "block2": (5,), "pooled": (5,)}
    assert list(build("mlp", {"hidden": []}, channels=1, size=4).kd_taps) == ["pooled"]


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_small_models_learn_digits(name: str) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16).sub(0.3).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    torch.manual_seed(0)
    model = build(name, channels=1, size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        for index in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    with torch.no_grad():
        right = model.eval()(images[1400:]).argmax(1) == labels[1400:]
    assert right.float().mean().item() > 0.85


# what users write wrongly --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet21", {}, ["no model 'resnet21'", "did you mean 'resnet"]),
        ("vit_tny_patch16_224", {}, ["did you mean 'vit_tiny_patch16_224'"]),
        ("resnet20", {"width": 2}, ["'resnet20'", "'width'", "it has no options"]),
        ("cnn", {"width": [2]}, ["'width'", "did you mean 'widths'", "depth"]),
        ("cnn", {"widths": [8, 0]}, ["'widths'", "[8, 0]"]),
        ("cnn", {"widths": []}, ["at least one stage"]),
        ("cnn", {"depth": True}, ["'depth'", "True"]),
        ("mlp", {"hidden": 3}, ["'hidden'", "3"]),
        ("cnn", {"classes": 4}, ["'classes' follows from the data set"]),
        ("resnet18", {"blok_args": 3}, ["'resnet18'", "'blok_args'", "did you mean 'block_args'"]),
        ("vovnet39a", {"patch_size": 3}, ["'vovnet39a'", "'patch_size'"]),
        ("vit_tiny_patch16_224", {"embed_dim": 50}, ["embed_dim=50", "num_heads"]),
        ("mixer_s32_224", {"patch_size": 8}, ["'mixer_s32_224' cannot be built", "multiple values", "'patch_size'"]),
        ("resnet18", {"num_classes": 3}, ["'num_classes' follows from the data set"]),
        ("resnet18", {"checkpoint_path": "x"}, ["`weights: FILE`"]),
        ("resnet18.a1_in2k", {}, ["did you mean 'resnet18.a1_in1k'"]),
    ],
)
def test_mistakes_are_sentences(name: str, options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught, torch.device("meta"):
        build(name, options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_pretrained_weights_of_own_models() -> None:
    with pytest.raises(UserError, match=r"'resnet20'.*timm's models only"):
        build("resnet20", pretrained=True)


# a user's file -------------------------------------------------------------------------------------------------------
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        self.early = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.out(self.pool(self.late(self.early(self.stem(x)))).flatten(1))

def plain(classes, channels, size, width=4):
    return Net(classes, channels, width)

def declared(*, classes, channels, size, **options):
    net = Net(classes, channels, 4)
    net.kd_taps = {"block1": "late.0"}
    net.kd_classifier = "out"
    return net

def broken(classes, channels, size):
    net = Net(classes, channels, 4)
    net.kd_taps = {"block1": "middle"}
    return net

def headless(classes, channels, size):
    return Net(classes + 1, channels, 4)

def nothing(classes, channels, size):
    pass

def failing(classes, channels, size):
    raise KeyError("a surprise")

def without_size(classes, channels):
    return Net(classes, channels, 4)

def lazy(classes, channels, size):
    stem = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Dropout())
    return nn.Sequential(stem, nn.Flatten(), nn.LazyLinear(classes))

def unreached(classes, channels, size):
    net = Net(classes, channels, 4)
    net.spare = nn.LazyLinear(3)
    return net

def too_deep(classes, channels, size):
    return nn.Sequential(nn.LazyConv2d(4, 99), nn.Flatten(), nn.Linear(4, classes))

class Remembers(Net):
    state = {"step": 3}
    def get_extra_state(self):
        return self.state
    def set_extra_state(self, state):
        pass

def extra(classes, channels, size):
    return Remembers(classes, channels, 4)

def extra_tensor(classes, channels, size):
    net = Remembers(classes, channels, 4)
    net.state = net.out.bias.detach().clone()
    return net
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path


def test_a_users_function_by_rule(folder: Path) -> None:
    model = build("./net.py:plain", {"width": 6}, folder=folder)
    assert model.kd_classifier == "out"
    assert shapes(model) == {"block1": (6, 16, 16), "block2": (12, 8, 8), "pooled": (12,)}


def test_a_users_function_that_declares_its_taps(folder: Path) -> None:
    model = build("./net.py:declared", {"anything": 1}, folder=folder)
    assert model.kd_taps == {"block1": Tap("late.0"), "pooled": Tap("out", "input")}
    assert shapes(model) == {"block1": (8, 8, 8), "pooled": (8,)}


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        ("plain", {"widht": 3}, ["'widht'", "did you mean 'width'"]),
        ("broken", {}, ["tap 'block1'", "'middle'", "not one of its submodules"]),
        ("headless", {}, ["no linear layer with 10 outputs", "kd_classifier"]),
        ("nothing", {}, ["must return a torch.nn.Module", "NoneType"]),
        ("failing", {}, ["KeyError", "a surprise"]),
        ("unreached", {}, ["never reaches the lazy parameter spare.weight"]),
        ("too_deep", {}, ["lazy layers", "first pass over 3x32x32 inputs failed"]),
        ("extra", {}, ["'_extra_state', a dict, of get_extra_state", "keep it in a buffer"]),
        ("without_size", {}, ["'size'", "function(classes=, channels=, size=, **options)"]),
    ],
)
def test_what_a_users_function_does_wrong(folder: Path, function: str, options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(f"./net.py:{function}", options, folder=folder)
    for word in ("net.py", *words):
        assert word in str(caught.value)


def test_lazy_layers_are_made_by_a_first_pass(folder: Path) -> None:
    torch.manual_seed(3)
    model = build("./net.py:lazy", folder=folder)
    assert model.training
    assert all(module.training for module in model.modules())
    assert model.kd_classifier == "2"
    assert model[2].weight.shape == (10, 4 * 30 * 30)
    assert flops.count(model, (3, 32, 32))[0] == 4 * 3 * 9 + 4 + 8 + (4 * 30 * 30 + 1) * 10
    torch.manual_seed(3)
    again = build("./net.py:lazy", folder=folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(model[0][1].running_mean, torch.zeros(4))  # the black images leave no trace
    with torch.device("meta"):
        assert build("./net.py:lazy", folder=folder)[2].weight.is_meta


def test_an_extra_state_that_is_a_tensor_is_a_state_like_any_other(folder: Path) -> None:
    assert "_extra_state" in build("./net.py:extra_tensor", folder=folder).state_dict()

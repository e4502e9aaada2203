from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from kdbench import models
from kdbench.errors import UserError
from kdbench.models import size as flops


def build(name: str, options: dict | None = None, **changes) -> nn.Module:
    return models.build(name, options or {}, **({"classes": 10, "channels": 3, "size": 32} | changes))


def resnet_macs(depth: int, classes: int = 10, channels: int = 3, size: int = 32) -> int:
    n, widths, total, side = (depth - 2) // 6, (16, 16, 32, 64), channels * 16 * 9 * size**2, size
    for stage, (cin, cout) in enumerate(pairwise(widths)):
        side = (side + 1) // 2 if stage else side
        total += (cin * cout * 9 + (2 * n - 1) * cout * cout * 9) * side**2
        total += cin * cout * side**2 if cin != cout else 0
    return total + 64 * classes


@pytest.mark.parametrize("depth", [8, 20, 56])
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 8)])
def test_resnet_equals_the_closed_form(depth: int, channels: int, size: int) -> None:
    with torch.device("meta"):
        model = build(f"resnet{depth}", channels=channels, size=size)
    assert flops.count(model, (channels, size, size))[1] == resnet_macs(depth, 10, channels, size)


def test_resnet20_by_number() -> None:
    assert flops.count(build("resnet20"), (3, 32, 32)) == (272_474, 40_813_184)


def test_mlp_equals_the_closed_form() -> None:
    model = build("mlp", {"hidden": [30, 20]}, channels=1, size=8)
    products = 64 * 30 + 30 * 20 + 20 * 10
    assert flops.count(model, (1, 8, 8)) == (products + 30 + 20 + 10, products)


def vit_macs(size: int, patch: int, dim: int, depth: int, classes: int, channels: int = 3) -> int:
    patches = (size // patch) ** 2
    tokens = patches + 1
    block = tokens * dim * 3 * dim + 2 * tokens * tokens * dim + tokens * dim * dim + 2 * tokens * dim * 4 * dim
    return patches * channels * patch**2 * dim + depth * block + dim * classes


@pytest.mark.parametrize("fused", [True, False])
def test_vit_equals_the_closed_form(fused: bool) -> None:
    options = {"patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = build("vit_tiny_patch16_224", options)
    for block in model.blocks:
        block.attn.fused_attn = fused
    assert flops.count(model, (3, 32, 32))[1] == vit_macs(32, 4, 48, 2, 10)


def test_torchs_own_encoder_layer_is_not_lost_in_its_fast_path() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x):
            return self.layer(x.flatten(2).transpose(1, 2)).mean(1)

    length, d, hidden = 9, 16, 32
    expected = length * d * 3 * d + 2 * length * length * d + length * d * d + 2 * length * d * hidden
    assert flops.count(Encoder(), (16, 3, 3))[1] == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_grouped_convolution() -> None:
    model = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert flops.count(model, (8, 5, 5)) == (8 * 9 + 8, 8 * 9 * 25)


def test_batched_products_and_shared_parameters() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 6, bias=False)
            self.two = nn.Linear(6, 6, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x):
            y = self.two(self.one(x[:, 0]))
            return torch.bmm(y, y.transpose(1, 2))

    assert flops.count(Shared(), (1, 4, 6)) == (36, 2 * 4 * 36 + 4 * 4 * 6)


def test_norms_activations_and_pooling_are_free() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.GELU(), nn.AvgPool2d(2), nn.Softmax(1))
    assert flops.count(model, (3, 8, 8)) == (6, 0)


@pytest.mark.parametrize("name", ["cnn", "resnet8", "vit_tiny_patch16_224"])
def test_the_model_is_left_alone(name: str) -> None:
    model = build(name, {"patch_size": 8, "depth": 1} if "vit" in name else {}).train()
    next(model.children()).eval()
    modes = [m.training for m in model.modules()]
    tensors = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    flops.count(model, (3, 32, 32))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in model.state_dict(keep_vars=True).items():
        assert value is tensors[key][0]
        assert value.device.type == "cpu"
        assert value.requires_grad == tensors[key][0].requires_grad
        assert torch.equal(value, tensors[key][1])


def test_frozen_and_compiled_models_count_the_same() -> None:
    model = build("cnn")
    expected = flops.count(model, (3, 32, 32))
    assert flops.count(copy.deepcopy(model).requires_grad_(False), (3, 32, 32)) == expected
    assert flops.count(torch.compile(model), (3, 32, 32)) == expected  # not run, hence not compiled


def test_parameters_given_to_a_submodule() -> None:
    # cait, pit and other timm models do this; torch's counter then asks for a gradient function.
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.drop, self.head = nn.Parameter(torch.zeros(1, 5)), nn.Dropout(0.1), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.drop(self.token).expand(len(x), -1))

    assert flops.count(Tokens(), (1, 1, 1)) == (5 + 18, 15)


def test_a_forward_that_looks_at_values() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            y = self.fc(x.flatten(1))
            return y * 2 if y.sum().item() > 0 else y

    model = Looking()
    before = model.fc.weight.clone()
    assert flops.count(model, (1, 2, 2)) == (10, 8)
    assert torch.equal(model.fc.weight, before)
    assert flops.count(copy.deepcopy(model).to("meta"), (1, 2, 2)) == (10, 8)


def test_fused_attention_is_seen_on_the_cpu_too() -> None:
    class Looking(nn.Module):
        def forward(self, x):
            assert x.sum().item() == 0  # hence not on the meta device
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert flops.count(Looking(), (2, 7, 4)) == (0, 2 * 2 * 7 * 7 * 4)


def test_a_model_that_does_not_take_the_image() -> None:
    with pytest.raises(UserError, match=r"VisionTransformer cannot run on a 3x8x8 image \(check its img_size and"):
        flops.count(build("vit_tiny_patch16_224", {"depth": 1}, size=8), (3, 8, 8))


@torch.library.custom_op("kdbench_test::scan", mutates_args=())
def scan(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(1)


@scan.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_a_formula_for_a_custom_operator(monkeypatch) -> None:
    class Scanning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(7, 2, bias=False)

        def forward(self, x):
            return self.fc(torch.ops.kdbench_test.scan(x.flatten(1)))

    monkeypatch.setattr(flops, "_FORMULAS", {})
    assert flops.count(Scanning(), (1, 1, 7)) == (14, 14)
    flops.register(torch.ops.kdbench_test.scan, lambda x, *, out_shape, **_: 3 * x[0] * x[1])
    assert flops.count(Scanning(), (1, 1, 7)) == (14, 14 + 21)


def test_what_the_board_says_of_mamba_s_formulas_is_what_comes_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """4.5 for each channel, state and token and 2 for skip and gate of the scan; 2.5 for each number of a norm."""
    depth, dim, state, tokens = 3, 16, 4, 16
    options = {"depth": depth, "dim": dim, "patch": 2, "d_state": state, "expand": 2}
    model = models.build("mamba", options, classes=10, channels=1, size=8)
    full = flops.count(model, (1, 8, 8))[1]
    monkeypatch.setattr(flops, "_FORMULAS", {})
    channels = 2 * dim
    formulas = depth * tokens * (channels * (4.5 * state + 2) + 2.5 * dim)
    assert full - flops.count(model, (1, 8, 8))[1] == formulas


def test_zeros_are_counted_in_matrices_and_convolutions_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    assert flops.zeros(net) == 0  # BatchNorm's shifts are 0
    with torch.no_grad():
        net[0].weight[0].zero_()
        net[3].weight[0, 1] = 0
    assert flops.zeros(net) == 10

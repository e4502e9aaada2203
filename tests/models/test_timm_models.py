"""timm models by name, and the rules by which models that declare no taps get some."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdbench import models
from kdbench.errors import UserError
from kdbench.models.equip import equip
from kdbench.models.taps import Tap, Tapped, profile


def build(name: str, options: dict | None = None, **changes) -> nn.Module:
    return models.build(name, options or {}, **({"classes": 10, "channels": 3, "size": 32} | changes))


def shapes(model: nn.Module, channels: int = 3, size: int = 32) -> dict[str, tuple[int, ...]]:
    facts = {"classes": 10, "examples": 1, "input_shape": (channels, size, size)}
    return profile(model, "student", ("block*", "pooled"), **facts).taps


# timm ----------------------------------------------------------------------------------------------------------------
TINY_VIT = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
FAMILIES = [
    ("resnet10t", {}, 32, "fc", {"block1": (64, 8, 8), "block4": (512, 1, 1), "pooled": (512,)}, 4),
    ("vit_tiny_patch16_224", TINY_VIT, 32, "head", {"block1": (17, 48), "block3": (17, 48), "pooled": (48,)}, 3),
    ("deit_tiny_patch16_224", TINY_VIT, 64, "head", {"block1": (65, 48), "block3": (65, 48), "pooled": (48,)}, 3),
    ("deit_tiny_distilled_patch16_224", TINY_VIT, 32, "head", {"block3": (18, 48), "pooled": (48,)}, 3),
    ("convnext_atto", {}, 32, "head.fc", {"block1": (40, 8, 8), "block4": (320, 1, 1), "pooled": (320,)}, 4),
    ("efficientnet_b0", {}, 32, "classifier", {"block1": (16, 16, 16), "block5": (320, 1, 1), "pooled": (1280,)}, 5),
    ("tiny_vit_5m_224", {}, 64, "head.fc", {"block1": (64, 16, 16), "block4": (320, 2, 2), "pooled": (320,)}, 4),
    (
        "mobilenetv4_conv_small_035",
        {},
        32,
        "classifier",
        {"block1": (16, 8, 8), "block4": (336, 1, 1), "pooled": (1280,)},
        4,
    ),
    (
        "mixer_s32_224",
        {},
        64,
        "head",
        {"block1": (4, 512), "block8": (4, 512), "pooled": (512,)},
        8,
    ),
    ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1]}, 32, "head.fc", {"block2": (192, 4, 4)}, 4),
    ("resnetv2_18", {}, 32, "head.fc", {"block4": (512, 1, 1), "pooled": (512,)}, 4),
    ("hrnet_w18_small", {}, 64, "classifier", {"block1": (16, 16, 16), "pooled": (2048,)}, 3),
    ("volo_d1_224", {}, 32, "head", {"block1": (192, 4, 4), "pooled": (384,)}, None),
]


@pytest.mark.parametrize(
    ("name", "options", "size", "classifier", "some", "blocks"), FAMILIES, ids=lambda v: str(v)[:9]
)
def test_timm_families(name, options, size, classifier, some, blocks) -> None:
    with torch.device("meta"):  # shapes only: quick, and as the runner tries models before a run
        model = build(name, options, size=size)
    found = shapes(model, 3, size)
    assert model.kd_classifier == classifier
    assert {tap: found[tap] for tap in some} == some
    assert blocks is None or list(found) == [*(f"block{i + 1}" for i in range(blocks)), "pooled"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", TINY_VIT),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
        ("test_efficientnet", {}),
        ("mobilenetv4_conv_small_035", {}),
        ("mixer_s32_224", {"mlp_ratio": (0.25, 0.25)}),
        ("tiny_vit_5m_224", {"embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}),
    ],
)
def test_timm_pooled_is_what_the_classifier_sees(name: str, options: dict) -> None:
    torch.manual_seed(0)
    model = build(name, options).eval()
    x = torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(model)(x)
    out = Tapped(model, "student", ("block*", "pooled"))(x)
    assert torch.equal(out.rows, plain)
    torch.testing.assert_close(model.get_submodule(model.kd_classifier)(out.pooled), plain)
    assert all(block.requires_grad for block in out.blocks)


def test_timm_channels_last_maps_are_handed_out_channels_first() -> None:
    with torch.device("meta"):
        model = build("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1]}, size=64)
    assert shapes(model, 3, 64)["block1"] == (96, 16, 16)
    assert model.kd_taps["block1"] == Tap("layers.0", channels_last=True)


def test_timm_takes_the_image_size_unless_given() -> None:
    with torch.device("meta"):
        assert build("vit_tiny_patch16_224", size=64).patch_embed.img_size == (64, 64)
        assert build("vit_tiny_patch16_224", {"img_size": 48}, size=64).patch_embed.img_size == (48, 48)
        assert build("resnet10t", channels=1, size=28).conv1[0].in_channels == 1


def test_pretrained_weights_without_network(monkeypatch, tmp_path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"'resnet10t'.*cannot be had.*weights: FILE") as caught:
        build("resnet10t", pretrained=True)
    assert "\n" not in str(caught.value)


# tap rules -----------------------------------------------------------------------------------------------------------
class Lists(nn.Module):
    """Blocks kept in a list, as transformers do, after a layer and before a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Linear(4, 4))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)
        self.auxiliary = nn.Linear(4, 2)


def test_the_members_of_a_list_are_blocks() -> None:
    model = equip(Lists(), "lists", classes=5)
    assert model.kd_classifier == "head"  # not the last linear layer: that one does not fit the classes
    assert {name: tap.path for name, tap in model.kd_taps.items()} == {
        "block1": "blocks.0",
        "block2": "blocks.1",
        "block3": "blocks.2",
        "pooled": "head",
    }


def test_a_network_inside_another_is_looked_into() -> None:
    outer = nn.Module()
    outer.net = Lists()
    taps = equip(outer, "outer", classes=5).kd_taps
    assert [tap.path for tap in taps.values()] == ["net.blocks.0", "net.blocks.1", "net.blocks.2", "net.head"]


def test_single_layers_are_no_blocks() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    assert equip(model, "plain", classes=10).kd_taps == {"pooled": Tap("3", "input")}

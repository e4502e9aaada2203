"""Some of a network's layers: what is left computes what the chosen blocks compute, and is tapped anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench import models
from kdbench.errors import UserError
from kdbench.models import layers
from kdbench.models.taps import Tapped

SHAPE = (1, 8, 8)


def built(name: str, options: dict) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, options, classes=10, channels=1, size=8).eval()


DEEP = [
    ("mamba", {"depth": 4, "dim": 8, "patch": 4}, "blocks"),
    ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}, "blocks"),
    ("mlp", {"hidden": [16, 16, 16, 16]}, "layers"),
]


@pytest.mark.parametrize(("name", "options", "path"), DEEP, ids=[name for name, *_ in DEEP])
def test_the_other_blocks_are_as_if_they_were_not_there(name: str, options: dict, path: str) -> None:
    whole, some = built(name, options), layers.keep(built(name, options), [0, 2], SHAPE, name)
    assert layers.stack(some) == (path,)
    x = torch.randn(3, *SHAPE)
    container = whole.get_submodule(path)
    for number in (1, 3):
        container[number] = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(some(x), whole(x))
        out = Tapped(some, "student", ("block*",))(x)
        expected = Tapped(whole, "teacher", ("block1", "block3"))(x)
    assert list(out.taps) == ["block1", "block2"]
    for ours, theirs in zip(out.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_blocks_of_stages_are_counted_on() -> None:
    made = layers.keep(built("resnet20", {}), [0, 1, 3, 6, 8], SHAPE, "resnet20")
    assert [len(getattr(made, f"layer{i}")) for i in (1, 2, 3)] == [2, 1, 2]
    whole = built("resnet20", {})
    assert torch.equal(made.layer3[1].conv1.weight, whole.layer3[2].conv1.weight)
    assert [name for name in made.kd_taps if name.startswith("block")] == ["block1", "block2", "block3"]


def test_layers_that_cannot_be_kept_are_sentences() -> None:
    with pytest.raises(UserError, match="teacher mlp has no layer 4: its 4 are counted from 0"):
        layers.keep(built("mlp", {"hidden": [16] * 4}), [0, 4], SHAPE, "teacher mlp")
    with pytest.raises(UserError, match=r"teacher cnn: its layers \[0, 2\] do not fit together"):
        layers.keep(built("cnn", {"widths": [4, 8, 16]}), [0, 2], SHAPE, "teacher cnn")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match="does not say what its layers are"):
        layers.keep(plain, [0], SHAPE, "teacher net")

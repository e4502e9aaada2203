from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdbench import models
from kdbench.errors import UserError
from kdbench.models import weights


def build(seed: int, **options) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("cnn", {"widths": [4, 6], **options}, classes=3, channels=1, size=8)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


SHAPES = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 240, "optimizer": {"lr": 0.1}},
    "state_dict": lambda state: {"state_dict": state, "best_acc": torch.tensor(0.7)},
    "both": lambda state: {"model": {"state_dict": state}},
    "module": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "old": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("kind", SHAPES)
def test_pickled(tmp_path: Path, kind: str, suffix: str) -> None:
    source, model, path = build(1), build(2), tmp_path / f"weights{suffix}"
    source(torch.randn(8, 1, 8, 8))  # so that BatchNorm's buffers are not the initial ones
    if kind == "old":
        model.load_state_dict({k: v for k, v in source.state_dict().items() if "num_batches" in k}, strict=False)
    torch.save(SHAPES[kind](source.state_dict()), path)
    assert not same(model, source)
    weights.load(model, path)
    assert same(model, source)


@pytest.mark.parametrize("kind", ["bare", "module"])
def test_safetensors(tmp_path: Path, kind: str) -> None:
    source, model, path = build(1), build(2), tmp_path / "weights.safetensors"
    save_file(SHAPES[kind](source.state_dict()), path)
    weights.load(model, path)
    assert same(model, source)


def refused(model: nn.Module, path: Path) -> str:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        weights.load(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # all or none
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_missing_and_unexpected_names(tmp_path: Path) -> None:
    state, path = build(1).state_dict(), tmp_path / "weights.pt"
    del state["classifier.bias"]
    state |= {f"extra{i}": torch.zeros(1) for i in range(5)}
    torch.save(state, path)
    sentence = refused(build(2), path)
    assert "missing: classifier.bias; not the model's: extra0, extra1, extra2 and 2 more" in sentence


def test_other_shapes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(build(1, widths=[4, 7]).state_dict(), path)
    assert "of another shape: stages.1.0.weight (7, 4, 3, 3) for (6, 4, 3, 3)" in refused(build(2), path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(build(1).state_dict(), path)
    else:
        torch.save(build(1).state_dict(), path)
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[: len(raw) // 2], "noise": b"\x80\x02 not weights" * 9, "empty": b""}[damage])
    refused(build(2), path)


def test_more_than_tensors(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(build(1), path)  # the pickled model itself: code, not data
    assert "save the model's state_dict() alone" in refused(build(2), path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {}}])
def test_no_state_dict(tmp_path: Path, content) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert "holds no state dict" in refused(build(2), path)


def test_no_such_file_and_other_kinds(tmp_path: Path) -> None:
    assert "no such file" in refused(build(2), tmp_path / "weights.pt")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    assert ".pt, .pth or .safetensors" in refused(build(2), tmp_path / "weights.onnx")

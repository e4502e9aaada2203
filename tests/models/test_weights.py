from __future__ import annotations

import argparse
import functools
import re
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
    "compiled_first": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3},
    "lightning_compiled": lambda state: {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}},
    "lightning_loss": lambda state: {
        "state_dict": {**{f"net.{k}": v for k, v in state.items()}, "criterion.weight": torch.ones(3)}
    },
    "part_compiled": lambda state: {k.replace("stages.1.", "stages.1._orig_mod."): v for k, v in state.items()},
    "sharded": lambda state: {k.replace("stages.", "_fsdp_wrapped_module.stages."): v for k, v in state.items()},
    **{
        key: functools.partial(lambda key, state: {key: state, "epoch": 1, "args": argparse.Namespace(lr=0.1)}, key)
        for key in ("model_state_dict", "model_state", "net", "network", "weights", "params", "ema", "state_dict_ema")
    },
    "not_averaged": lambda state: {"ema": {k: v * 0 for k, v in state.items()}, "state_dict": state},
    "old": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth.tar"])
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
    assert ".pt, .pth, .pth.tar, .ckpt, .bin or .safetensors" in refused(build(2), tmp_path / "weights.onnx")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors"])
def test_the_content_counts_and_not_the_suffix(tmp_path: Path, suffix: str) -> None:
    source, path = build(1), tmp_path / f"weights{suffix}"
    for save in (save_file, torch.save, lambda state, to: torch.save(state, to, _use_new_zipfile_serialization=False)):
        save(source.state_dict(), path)
        model = build(2)
        weights.load(model, path)
        assert same(model, source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
            "is a Git LFS pointer, .*`git lfs pull`",
        ),
        (b"<html>", "is a web page, not weights"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "is a web page, not weights"),
        (b"", "is empty; fetch it again"),
        (b"hello", "cut short, damaged, or of another kind"),
    ],
)
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert re.search(said, refused(build(2), path))


def test_no_sentence_repeats_advice_to_load_unsafely(tmp_path: Path) -> None:
    path, said = tmp_path / "weights.pt", []
    torch.save({"state_dict": build(1).state_dict(), "config": Path("x")}, path)
    said.append(refused(build(2), path))
    assert "holds more than tensors (pathlib" in said[0]
    path.write_bytes(b"\x80\x02 not weights" * 9)  # of which torch too says that loading failed for safety
    said.append(refused(build(2), path))
    assert "damaged" in said[1]
    torch.jit.script(nn.Linear(1, 1)).save(path)
    said.append(refused(build(2), path))
    assert "TorchScript" in said[2]
    assert not any("weights_only" in sentence or "trust" in sentence for sentence in said)


class Wrapped(nn.Module):
    """Its author called the whole network `module`, and a part of it `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 3), nn.Sequential())
        self.module[1].model = nn.Linear(3, 2)  # type: ignore[assignment]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.module.", "model._orig_mod.module."])
def test_prefixes_that_the_model_has_itself_stay(tmp_path: Path, prefix: str) -> None:
    source, model, path = Wrapped(), Wrapped(), tmp_path / "weights.pt"
    assert all(name.startswith("module.") for name in source.state_dict())
    torch.save({f"{prefix}{name}": value for name, value in source.state_dict().items()}, path)
    weights.load(model, path)
    assert same(model, source)


def test_names_that_would_collide_are_not_shortened() -> None:
    one, other = torch.zeros(1), torch.ones(1)
    state = {"a._orig_mod.w": one, "a.w": other, "a.b": one}
    assert weights.renamed(state, {"a.w": other, "a.b": one}) == state

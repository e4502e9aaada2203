"""Checkpoints: whole or set aside, and never continued with other arithmetic than they were begun with."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree
from training import digits, task

from kdbench import models
from kdbench.errors import UserError
from kdbench.methods.kd import KD
from kdbench.models.mamba import scan
from kdbench.train import checkpoint
from kdbench.train.engine import Engine
from kdbench.train.state import State

CPU = torch.device("cpu")
SHAPE = {"classes": 10, "channels": 1, "size": 8}


def mamba(backend: str = "auto") -> torch.nn.Module:
    return models.build("mamba", {"depth": 1, "dim": 8, "patch": 4, "backend": backend}, **SHAPE)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Sets KDBENCH_SCAN, which is read once in a process."""

    def chosen(backend: str) -> None:
        monkeypatch.setenv("KDBENCH_SCAN", backend)
        scan._automatic.cache_clear()

    yield chosen
    scan._automatic.cache_clear()


def test_a_training_begins_with_the_backend_written_down(tmp_path: Path, choose) -> None:
    choose("torch")
    assert checkpoint.begin(tmp_path / "k.pt", [mamba()], CPU, pytest.fail) == State(scan="torch")
    mlp = models.build("mlp", {}, **SHAPE)
    assert checkpoint.begin(tmp_path / "k.pt", [mlp], CPU, pytest.fail) == State()


def test_a_checkpoint_is_continued_with_the_backend_that_began_it(tmp_path: Path, monkeypatch, choose) -> None:
    choose("torch")
    path = checkpoint.path_of(tmp_path, "k")
    checkpoint.save(path, State(epoch=3, scan="torch"))
    assert checkpoint.begin(path, [mamba()], CPU, pytest.fail).epoch == 3

    monkeypatch.setattr(scan.scan_native, "problem", lambda: "")
    choose("native")
    with pytest.raises(
        UserError, match=r"k\.pt: .*begun with scan backend 'torch', .* go on with 'native'; set KDBENCH"
    ):
        checkpoint.begin(path, [mamba()], CPU, pytest.fail)
    assert path.exists()  # nothing is lost: with the right backend it goes on
    assert checkpoint.begin(path, [mamba("torch")], CPU, pytest.fail).epoch == 3


def test_a_damaged_checkpoint_is_set_aside_with_a_warning(tmp_path: Path) -> None:
    path, said = checkpoint.path_of(tmp_path, "k"), []
    checkpoint.save(path, State(epoch=3))
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoint.begin(path, [torch.nn.Linear(1, 1)], CPU, said.append) == State()
    assert len(said) == 1
    assert "digest does not fit" in said[0]
    assert not path.exists()


def test_no_warning_repeats_advice_to_load_unsafely(tmp_path: Path) -> None:
    path, said, buffer = checkpoint.path_of(tmp_path, "k"), [], io.BytesIO()
    torch.save({"stage": torch.nn.Linear(1, 1)}, buffer)  # with a good digest, but a program
    path.parent.mkdir()
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    assert checkpoint.resume(path, CPU, said.append) is None
    assert said == ["k.pt: damaged checkpoint (it holds no state of a training); set aside as k.pt.damaged"]


def test_a_view_is_kept_without_what_lies_behind_it(tmp_path: Path) -> None:
    path, behind = checkpoint.path_of(tmp_path, "k"), torch.arange(100_000.0)
    optimizer = {"state": {0: {"momentum_buffer": behind[7:9]}}, "param_groups": [{"params": [0]}]}
    checkpoint.save(path, State(tensors={"models": {"student": {"w": behind[:3]}}, "optimizers": {"s": optimizer}}))
    assert path.stat().st_size < 10_000
    state = checkpoint.load(path, CPU)
    assert state is not None
    assert state.tensors["models"]["student"]["w"].tolist() == [0, 1, 2]
    assert state.tensors["optimizers"]["s"]["state"][0]["momentum_buffer"].tolist() == [7, 8]


def test_a_checkpoint_of_a_training_is_as_large_as_its_tensors(tmp_path: Path) -> None:
    path, saved = checkpoint.path_of(tmp_path, "k"), []
    loaded = digits()
    Engine(task(KD(), loaded), save=lambda state: saved.append(checkpoint.save(path, state))).train()
    state, content = checkpoint.load(path, CPU), path.read_bytes()
    assert state is not None
    tensors = [t for t in pytree.tree_leaves(state.tensors) if isinstance(t, torch.Tensor)]
    size = sum(t.numel() * t.element_size() for t in tensors)
    assert size < len(content) < size + 600 * len(tensors) + 10_000
    for split in (loaded.train, loaded.val):
        for pixels in split.images:
            assert pixels.numpy().tobytes() not in content
            assert ((pixels / 255 - loaded.mean[0]) / loaded.std[0]).numpy().tobytes() not in content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no archive", "holds no state"),
        ({"epoch": "three"}, "epoch"),
        ({"curves": {"val/top1": "x"}}, "curves"),
        ({"bogus": 1}, "bogus"),
    ],
)
def test_what_holds_no_state_is_set_aside_though_its_digest_fits(tmp_path: Path, content, reason: str) -> None:
    path, said, buffer = checkpoint.path_of(tmp_path, "k"), [], io.BytesIO()
    if isinstance(content, bytes):
        buffer.write(content)
    else:
        torch.save(content, buffer)
    payload = buffer.getvalue()
    path.parent.mkdir()
    path.write_bytes(hashlib.sha256(payload).digest() + payload)
    assert checkpoint.resume(path, CPU, said.append) is None
    (sentence,) = said
    assert reason in sentence
    assert "weights_only" not in sentence
    assert sentence.isprintable()
    assert not path.exists()

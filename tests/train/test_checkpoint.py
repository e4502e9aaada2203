"""Checkpoints: whole or set aside, and never continued with other arithmetic than they were begun with."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdbench import models
from kdbench.errors import UserError
from kdbench.models.mamba import scan
from kdbench.train import checkpoint
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

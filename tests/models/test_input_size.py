"""A role with an input size of its own sees the same images, resized; nothing else about its model changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training import digits, task

from kdbench import models
from kdbench.methods.fitnet import FitNet
from kdbench.methods.kd import KD
from kdbench.models import size as flops
from kdbench.models.taps import Tapped, available, profile
from kdbench.suite.job import expand
from kdbench.suite.load import load
from kdbench.train.engine import Engine
from kdbench.train.workbench import Workbench

torch.set_num_threads(1)

CASES = [
    ("cnn", {"widths": [4, 8, 8]}, 24),
    ("resnet18", {}, 32),
    ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2}, 32),
]


def pair(name: str, options: dict, size: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(for 64x64 images with its own input size, for that size), with the same weights."""
    torch.manual_seed(0)
    own = models.build(name, options, classes=10, channels=3, size=64, input_size=size)
    torch.manual_seed(0)
    return own.eval(), models.build(name, options, classes=10, channels=3, size=size).eval()


@pytest.mark.parametrize(("name", "options", "size"), CASES)
def test_it_is_the_model_of_that_size_behind_a_resize(name: str, options: dict, size: int) -> None:
    own, plain = pair(name, options, size)
    assert list(own.state_dict()) == list(plain.state_dict())
    own.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    small = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    for module in (own, copy.deepcopy(own)):
        assert torch.equal(module(x), plain(small))
        assert torch.equal(module(small), plain(small))  # images of that size are left alone
        torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), plain(small))
    assert available(own) == available(plain)
    assert flops.count(own, (3, 64, 64)) == flops.count(plain, (3, size, size))
    names = tuple(available(plain))
    heard, expected = Tapped(own, "student", names)(x), Tapped(plain, "student", names)(small)
    assert all(torch.equal(heard.taps[tap], expected.taps[tap]) for tap in names)
    shapes = profile(own, "student", names, classes=10, examples=1, input_shape=(3, 64, 64)).taps
    assert shapes == {tap: tuple(value.shape[1:]) for tap, value in expected.taps.items()}


def test_the_same_size_adds_nothing() -> None:
    model = models.build("cnn", {}, classes=10, channels=3, size=32, input_size=32)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("method", [KD(), FitNet()])
def test_teacher_and_student_of_different_sizes_train_together(method) -> None:
    small = digits()
    work = task(method, small)
    torch.manual_seed(0)
    large = models.build("cnn", {"widths": [8, 16, 16]}, classes=10, channels=1, size=8, input_size=16)
    work.models["teacher"] = large.eval().requires_grad_(False)
    sides = set()
    next(large.children()).register_forward_pre_hook(lambda m, inputs: sides.add(inputs[0].shape[-1]))
    assert len(Engine(work).train().curves["train/loss"]) == 2
    assert sides == {16}


def test_a_suite_says_it_and_old_keys_stay(tmp_path: Path) -> None:
    text = (
        "name: sizes\ndata: {name: digits}\nrecipe: {epochs: 1, batch_size: 512}\nseeds: [0]\nmethods: {none: , kd: }\n"
        "pairs:\n  a: {teacher: {model: cnn%s}, student: {model: cnn, options: {widths: [4, 8, 8]}}}\n"
    )
    path = tmp_path / "sizes.yaml"
    found = {}
    for extra in ("", ", input_size: 12"):
        path.write_text(text % extra)
        (_, job) = expand(load(path), "f")
        found[extra] = job
        assert ("input_size" in job.content["roles"]["teacher"]) == bool(extra)
        assert "random_resized_crop" not in job.content["recipe"]["augment"]
    assert found[""].key != found[", input_size: 12"].key
    jobs = expand(load(path))
    bench = Workbench.load(jobs[1], tmp_path, torch.device("cpu"), tmp_path / "runs")
    result = bench.perform(jobs[1])
    assert result.status == "ok"
    plain = models.build("cnn", {}, classes=10, channels=1, size=12)
    assert result.cost.teacher_macs == flops.count(plain, (1, 12, 12))[1]
    path.write_text(text % ", input_size: 0")
    with pytest.raises(Exception, match="input_size"):
        load(path)

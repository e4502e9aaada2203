"""A teacher that is a file: as good as the stored logits of the teacher that wrote it; all else is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import kdbench

from kdbench.data import load as load_data
from kdbench.errors import UserError
from kdbench.suite.job import expand
from kdbench.suite.load import load
from kdbench.train import answers
from kdbench.train.workbench import Workbench

SUITE = """
name: boxed
data: {name: digits, fraction: 0.2}
recipe: {epochs: 2, batch_size: 32, optimizer: {lr: 0.02}, teacher_logits: stored}
pairs:
  p:
    teacher: {model: mlp, options: {hidden: [16]}}
    student: {model: mlp, options: {hidden: [8]}}
methods:
  kd:
  rkd:
  mixup: {over: {method: kd}}
seeds: [0]
"""
BOXED = SUITE.replace("{model: mlp, options: {hidden: [16]}}", "{answers: said.npz}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("answers")
    (made / "open.yaml").write_text(SUITE)
    done = kdbench(made, "answers", "open.yaml", "p", "--to", "said.npz")
    assert done.returncode == 0, done.stderr
    assert "said.npz: answers to" in done.stdout
    (made / "boxed.yaml").write_text(BOXED)
    return made


def perform(folder: Path, name: str, label: str):
    declared = load(folder / name)
    data = load_data(declared.file.data, folder)
    job = next(job for job in expand(declared, data.fingerprint) if job.label == label)
    return Workbench(data, torch.device("cpu"), folder / "runs").perform(job)


def test_a_file_of_logits_teaches_as_its_teacher_does(folder: Path) -> None:
    whole, boxed = perform(folder, "open.yaml", "kd"), perform(folder, "boxed.yaml", "kd")
    assert boxed.status == "ok", boxed.reason
    assert boxed.curves == whole.curves
    assert boxed.scores["test/top1"] == whole.scores["test/top1"]
    assert boxed.key != whole.key
    assert (boxed.cost.teacher_parameters, boxed.cost.teacher_macs, boxed.cost.teacher_seconds) == (None, None, 0.0)
    assert "test/agreement" in whole.scores
    assert "test/agreement" not in boxed.scores
    assert boxed.notes == []


def test_augmentation_is_noted_in_the_record(folder: Path) -> None:
    (folder / "moved.yaml").write_text(BOXED.replace("teacher_logits: stored", "augment: {crop: 1}"))
    (note,) = perform(folder, "moved.yaml", "kd").notes
    assert note == "the teacher answers from a file: about each training example, whatever its augmentation"


def test_what_a_file_cannot_say_is_refused(folder: Path) -> None:
    for label, sentence in (("rkd", "needs its features"), ("mixup", "images that it changes")):
        result = perform(folder, "boxed.yaml", label)
        assert result.status == "skipped"
        assert sentence in result.reason
        assert "the teacher is a file of answers" in result.reason


@pytest.fixture(scope="module")
def data(folder: Path):
    return load_data(load(folder / "open.yaml").file.data, folder)


def held(data, **arrays) -> dict:
    return {"data": np.frombuffer(answers.data_digest(data).encode(), dtype=np.uint8), **arrays}


def test_every_kind_becomes_logits_of_its_probabilities(data, tmp_path: Path) -> None:
    n = len(data.train.labels)
    logits = torch.randn(n, 10)
    p = logits.softmax(1)
    np.savez(tmp_path / "p.npz", **held(data, probabilities=p.numpy()))
    torch.testing.assert_close(answers.read(tmp_path / "p.npz", data).softmax(1), p)
    np.savez(tmp_path / "l.npz", **held(data, labels=p.argmax(1).numpy()))
    sure = answers.read(tmp_path / "l.npz", data).softmax(1)
    assert torch.equal(sure.argmax(1), p.argmax(1))
    assert sure.amax(1).min() > 0.999
    for ending in ("npz", "safetensors"):
        answers.write(tmp_path / f"k.{ending}", logits, data, top_k=3)
        found = answers.read(tmp_path / f"k.{ending}", data).softmax(1)
        for i in range(0, n, 17):  # by hand
            best = sorted(range(10), key=lambda c: -float(p[i, c]))[:3]
            rest = (1 - sum(float(p[i, c]) for c in best)) / 7
            expected = [float(p[i, c]) if c in best else rest for c in range(10)]
            assert found[i].tolist() == pytest.approx(expected, abs=1e-5)
        answers.write(tmp_path / f"z.{ending}", logits, data)
        assert torch.equal(answers.read(tmp_path / f"z.{ending}", data), logits)


def test_files_that_do_not_fit_are_sentences(data, tmp_path: Path) -> None:
    n, path = len(data.train.labels), tmp_path / "a.npz"
    wrong = [
        ({"labels": np.zeros(n, int), "logits": np.zeros((n, 10))}, "one of them"),
        ({}, "needs `labels`"),
        ({"labels": np.zeros(n - 1, int)}, f"are \\({n - 1},\\) for {n} training examples"),
        ({"labels": np.full(n, 10)}, "whole numbers from 0 to 9"),
        ({"probabilities": np.full((n, 10), -0.1)}, "negative, or not finite"),
        ({"logits": np.full((n, 10), np.nan)}, "negative, or not finite"),
    ]
    for arrays, sentence in wrong:
        np.savez(path, **held(data, **arrays))
        with pytest.raises(UserError, match=sentence):
            answers.read(path, data)
    np.savez(path, labels=np.zeros(n, int), data=np.frombuffer(b"other", dtype=np.uint8))
    with pytest.raises(UserError, match="its answers are of other data"):
        answers.read(path, data)
    path.write_bytes(b"PK no")
    with pytest.raises(UserError, match="damaged"):
        answers.read(path, data)
    with pytest.raises(UserError, match="no such file"):
        answers.read(tmp_path / "none.npz", data)
    with pytest.raises(UserError, match=r"\.npz or \.safetensors"):
        answers.write(tmp_path / "a.csv", torch.zeros(n, 10), data)


@pytest.mark.parametrize(
    ("role", "sentence"),
    [
        ("{answers: gone.npz}", "no such file: gone.npz"),
        ("{answers: said.npz, min_top1: 90}", "no validation for `min_top1`"),
        ("{answers: said.npz, options: {hidden: [8]}}", "is no network"),
        ("{answers: said.npz, pretrained: true}", "is no network"),
    ],
)
def test_mistakes_in_the_suite_are_sentences(folder: Path, role: str, sentence: str) -> None:
    (folder / "wrong.yaml").write_text(BOXED.replace("{answers: said.npz}", role))
    with pytest.raises(UserError, match=r"wrong\.yaml:\d+:\d+: .*" + sentence):
        load(folder / "wrong.yaml")


def test_a_board_prints_what_is_unknown(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        BOXED.replace("  rkd:\n  mixup: {over: {method: kd}}\n", "").replace("boxed", "ran")
    )
    done = kdbench(folder, "run", "run.yaml")
    assert done.returncode == 0, done.stderr
    assert "| **teacher**" in (folder / "leaderboard" / "ran.md").read_text()
    assert kdbench(folder, "plan", "run.yaml").returncode == 0

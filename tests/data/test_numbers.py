"""Sets of numbers: what scikit-learn has, standardised by the training split alone; mistakes are one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits

from kdbench import data
from kdbench.data.batches import Draw, fetch, stream
from kdbench.data.signature import Input, Signature, signature_of
from kdbench.errors import UserError
from kdbench.suite.fields import Augment, Data
from kdbench.tasks.classification import Classification
from kdbench.tasks.regression import Regression

NOWHERE = Path("nowhere")
MINE = """
import numpy as np
from kdbench.data import RawNumbers
{says}
def load(root, **changes):
    made = np.random.default_rng(0)
    given = dict(train=made.normal(size=(30, 4)), train_labels=made.normal(size=(30, 2)), test=made.normal(size=(9, 4)),
                 test_labels=made.normal(size=(9, 2)), outputs=2, val=5)
    return RawNumbers(**given | {{name: eval(text) for name, text in changes.items()}})
"""


def load(name: str, **fields) -> data.DataSet:
    return data.load(Data(name=name, **fields), NOWHERE)


def mine(folder: Path, says: str = 'TASK = "regression"', named: str | None = None, **options: str) -> data.DataSet:
    (folder / "mine.py").write_text(MINE.format(says=says))
    return data.load(Data(name="./mine.py:load", options=options), NOWHERE, folder, named)


def test_diabetes_is_scikit_learns_and_its_splits_are_disjoint() -> None:
    found = load("diabetes")
    assert isinstance(found.task, Regression)
    assert (found.task.unit, found.task.outputs, str(found.signature)) == ("row", 1, "10")
    assert [len(split) for split in (found.train, found.val, found.test)] == [248, 62, 132]
    values, targets = load_diabetes(return_X_y=True, scaled=False)
    expected = sorted([*map(tuple, np.column_stack([values, targets]).astype(np.float32).tolist())])
    splits = (found.train, found.val, found.test)
    seen = [(*x, y) for s in splits for x, (y,) in zip(s.values.tolist(), s.labels.tolist(), strict=True)]
    assert sorted(seen) == expected


def test_the_lower_half_follows_from_the_upper() -> None:
    found, images = load("digits_lower_half"), load_digits().images / 16
    assert str(found.signature) == "1x4x8"
    halves = torch.cat([found.test.values, found.test.labels], dim=2)[:, 0]
    known = {image.astype(np.float32).tobytes() for image in images}
    assert all(half.numpy().tobytes() in known for half in halves)
    whole = data.load(Data(name="digits"), NOWHERE)
    assert torch.equal((halves[:, None].double() * 16).round(), (whole.test.images.double() * 16 / 255).round())


def test_numbers_are_standardised_by_the_training_split() -> None:
    found = load("diabetes")
    x = fetch(found.train, torch.arange(len(found.train)))
    torch.testing.assert_close(x.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(10), atol=1e-5, rtol=0)
    scale = np.asarray(found.train.values)
    expected = (found.test.values[:3].numpy() - scale.mean(0)) / scale.std(0)
    np.testing.assert_allclose(fetch(found.test, torch.arange(3)).numpy(), expected, rtol=1e-4, atol=1e-5)
    maps = load("digits_lower_half")
    x = fetch(maps.train, torch.arange(len(maps.train)))
    assert (x.mean().item(), x.std().item()) == pytest.approx((0, 1), abs=1e-3)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_every_view_of_numbers_is_the_same_and_batches_keep_their_order() -> None:
    found = load("diabetes")
    index = torch.tensor([5, 3, 200, 3])
    parts = list(stream(found.train, index.split(3), views=2))
    assert torch.equal(torch.cat([a for a, _ in parts]), fetch(found.train, index))
    assert all(torch.equal(a, b) for a, b in parts)


def test_augmentation_of_numbers_is_refused() -> None:
    with pytest.raises(UserError, match=r"recipe\.augment changes images, and this data set holds numbers"):
        next(load("diabetes").train.batches([torch.arange(2)], Draw(Augment(flip=True), 0, 0)))


def test_a_smaller_fraction_keeps_validation_and_a_subset() -> None:
    whole, part = load("diabetes"), load("diabetes", fraction=0.5)
    assert torch.equal(whole.val.values, part.val.values)
    assert len(part.train) == 124
    rows = set(map(tuple, whole.train.values.tolist()))
    assert set(map(tuple, part.train.values.tolist())) < rows
    assert whole.fingerprint == part.fingerprint != load("digits_lower_half").fingerprint


def test_a_file_states_its_task_and_the_suite_may_say_it(tmp_path: Path) -> None:
    assert isinstance(mine(tmp_path).task, Regression)
    assert isinstance(mine(tmp_path, 'TASKS = {"load": "regression"}').task, Regression)
    assert isinstance(mine(tmp_path, "", "regression").task, Regression)
    labels = {"train_labels": "np.arange(30) % 3", "test_labels": "np.arange(9) % 3", "outputs": "3"}
    classes = mine(tmp_path, "", **labels)
    assert classes.task == Classification(3, unit="row")
    assert torch.bincount(classes.train.labels).tolist() in ([8, 8, 9], [8, 9, 8], [9, 8, 8])
    with pytest.raises(UserError, match="brings the task 'regression', and the suite takes it for 'classification'"):
        mine(tmp_path, "", **labels, task="'regression'")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": "np.zeros((30, 4, 2))"}, "train must be numbers"),
        ({"test": "np.zeros((9, 5))"}, r"test has examples \(5,\), train \(4,\)"),
        ({"train": "np.full((30, 4), np.nan)"}, "train holds numbers that are not finite"),
        ({"train_labels": "np.zeros((30, 3))"}, r"train_labels must be numbers \(30, 2, ...\)"),
        ({"test_labels": "np.full((9, 2), np.inf)"}, "test_labels must be finite"),
        ({"test_labels": "np.full((9, 2), np.nan)"}, "some must be known"),
        ({"val": "30"}, r"data\.val: 30 examples for validation"),
    ],
)
def test_wrong_numbers_are_one_sentence(tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        mine(tmp_path, **changes)


def test_a_column_that_never_changes_stays_finite(tmp_path: Path) -> None:
    found = mine(tmp_path, train="np.ones((30, 4))", test="np.full((9, 4), 3.0)")
    assert fetch(found.train, torch.arange(2)).tolist() == [[0.0] * 4] * 2
    assert fetch(found.test, torch.arange(1)).tolist() == [[2.0] * 4]


# signatures ----------------------------------------------------------------------------------------------------------
def test_a_signature_makes_what_a_model_takes() -> None:
    images = signature_of((3, 4, 4))
    assert images.zeros(2).shape == (2, 3, 4, 4)
    assert (images.shape, images.features, str(images)) == ((3, 4, 4), 48, "3x4x4")
    text = Signature({"tokens": Input((8,), "int64", 0, 99), "weight": Input((8,))})
    made = text.zeros(3, dtype=torch.float64)
    assert {name: (each.dtype, tuple(each.shape)) for name, each in made.items()} == {
        "tokens": (torch.int64, (3, 8)),
        "weight": (torch.float64, (3, 8)),
    }
    assert (text.shape, text.features, str(text)) == ((), 16, "tokens 8, weight 8")

"""What every data set promises, as tests to inherit.

class TestMine(kdbench.testing.DataContract):
    data = "./mine.py:load"  # as in a suite: a file's function, an installed package's or kdbench's own name
    folder = Path(__file__).parent
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import kdbench.data
from kdbench.data import DataSet
from kdbench.data.batches import Source, fetch
from kdbench.suite import fields
from kdbench.testing.contract import Contract


class DataContract(Contract):
    """The contract of data sets: `data = "name"`, or `cases = {"small": "name", ...}`."""

    subject = "data"
    data: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}  # of the data set, in every case
    val: ClassVar[int | None] = None  # as in a suite; None: the data set's own
    folder: ClassVar[Path] = Path()  # where `./mine.py` lies
    root: ClassVar[Path | None] = None  # where data lie; None: as for the commands

    @classmethod
    def unfit(cls, value: Any) -> str:
        return "" if isinstance(value, str) else f"{value!r} is no data set's name, as a suite gives it"

    def loaded(self, data: str, **changes: Any) -> DataSet:
        declared = fields.Data(**{"name": data, "options": dict(self.options), "val": self.val} | changes)
        return kdbench.data.load(declared, self.root or kdbench.data.default_root(), self.folder)

    def test_its_splits_are_inputs_with_labels(self, data: str) -> None:
        found = self.loaded(data)
        for split in (found.train, found.val, found.test):
            inputs, labels = _first(found, split)
            assert len(split.labels) > 0
            assert inputs.dtype == (torch.uint8 if hasattr(split, "images") else torch.float32)
            assert tuple(inputs.shape) == (len(labels), *found.shape)
            if found.task.kind == "categorical":
                assert split.labels.dtype == torch.int64
                assert split.labels.min() >= 0
                assert split.labels.max() < found.classes
            else:
                assert split.labels.is_floating_point()
        assert _classes(found) == found.classes or found.task.kind == "real", "a class without a training example"
        assert len(found.mean) == len(found.std) == found.channels

    def test_it_is_read_alike_each_time(self, data: str) -> None:
        one, other = self.loaded(data), self.loaded(data)
        assert (one.fingerprint, one.split) == (other.fingerprint, other.split)
        for name in ("train", "val", "test"):
            first, second = getattr(one, name), getattr(other, name)
            assert torch.equal(first.labels, second.labels)
            assert torch.equal(_first(one, first)[0], _first(other, second)[0])

    def test_validation_is_cut_from_training_by_the_split_seed_alone(self, data: str) -> None:
        one, other = self.loaded(data), self.loaded(data, split_seed=1)
        assert one.fingerprint == other.fingerprint, "the fingerprint is of the data before any cut"
        assert one.split != other.split
        assert [len(part) for part in (one.train, one.val, one.test)] == [
            len(part) for part in (other.train, other.val, other.test)
        ]
        if one.task.kind == "real":
            return  # numbers are standardised by those that are trained on
        assert torch.equal(one.test.labels, other.test.labels)
        assert torch.equal(_first(one, one.test)[0], _first(other, other.test)[0])
        both = [torch.cat([found.train.labels, found.val.labels]).flatten().sort().values for found in (one, other)]
        assert torch.equal(*both), "what is not trained on is validated on"

    def test_a_fraction_keeps_every_class_and_the_other_splits(self, data: str) -> None:
        whole, part = self.loaded(data), self.loaded(data, fraction=0.5)
        assert part.fingerprint == whole.fingerprint
        assert len(part.train.labels) < len(whole.train.labels)
        assert part.task.kind == "real" or _classes(part) == whole.classes
        assert torch.equal(part.val.labels, whole.val.labels)
        assert torch.equal(part.test.labels, whole.test.labels)

    def test_mean_and_std_make_pixels_of_usual_size(self, data: str) -> None:
        found = self.loaded(data)
        index = torch.linspace(0, len(found.train.labels) - 1, min(64, len(found.train.labels))).long()
        x = fetch(found.train, index)
        assert x.shape == (len(index), *found.shape)
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert x.mean().abs() < 2, "`mean` is of pixels scaled to [0, 1]"
        assert 0.25 < x.std() < 4, "`std` is of pixels scaled to [0, 1]"

    def test_images_of_a_batch_belong_to_its_indices(self, data: str) -> None:
        found = self.loaded(data)
        index = torch.tensor([3, 0, 3, 1])
        together = fetch(found.train, index)
        alone = torch.cat([fetch(found.train, one) for one in index.split(1)])
        assert torch.equal(together, alone)


def _classes(data: DataSet) -> int:
    """Classes that have a training example."""
    return len(data.train.labels.unique())


def _first(data: DataSet, split: Source, most: int = 16) -> tuple[Tensor, Tensor]:
    """The first images as stored, or numbers as they are given to a model, and their labels."""
    labels, stored = split.labels[:most], getattr(split, "images", None)
    if stored is None:
        return fetch(split, torch.arange(len(labels))), labels
    if isinstance(stored, Tensor):
        return stored[:most], labels
    (images,) = stored.read([(torch.arange(len(labels)), None)])
    return images, labels

"""Data sets: images as uint8 tensors or as files, or numbers; a fixed train/validation cut, and a fingerprint.

Each file here that declares `NAMES` reads some data sets: `read(name, root, **options) -> Raw` (of images) or
`RawNumbers`, and `status(name, root)`, one line for `kdbench doctor`. A suite may also name a function of its own,
`./mine.py:load`, or an installed package's by the entry point `kdbench.data`; both are called as
`load(root, **options)`. A file says what its sets are for by a literal `TASK = "regression"`, or `TASKS`, a map by name
(of a function, in a user's file); without, it is classification.

Validation is cut from the training set, unless there is a split of one's own: `options: {val: mine.npz}`, a file below
the data root with `x_val`, uint8 (N, channels, H, W) or (N, H, W), and `y_val`, integers (N,); `folder` takes the name
of a third folder instead. Its images must not be among those for training or for testing.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench import plugins
from kdbench.data.cut import cut
from kdbench.data.files import Files
from kdbench.data.held_out import with_own
from kdbench.data.numbers import RawNumbers, statistics
from kdbench.data.numbers import checked as checked_numbers
from kdbench.data.raw import Raw
from kdbench.data.signature import Signature
from kdbench.errors import UserError, did_you_mean
from kdbench.lazy import torch
from kdbench.suite import fields
from kdbench.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.data.batches import Source

__all__ = ["DataSet", "Raw", "RawNumbers", "default_root", "found", "load"]


@dataclass(frozen=True)
class DataSet:
    """Three disjoint splits and what they are of, in the order in which they are stored.

    `fingerprint` identifies the decoded pixels or numbers and the labels of the whole set before any cut, so that two
    layouts of the same data agree; `split` identifies the examples chosen for training and validation. Both are the
    first 16 hex digits of a sha256. `left_out` counts images that could not be decoded; `notes` says which.
    `class_names` are in the order of the labels, where they are known.
    """

    name: str
    task: Task
    signature: Signature  # of one example, as models take it
    train: Source
    val: Source
    test: Source
    fingerprint: str
    split: str
    notes: tuple[str, ...] = ()
    left_out: int = 0
    class_names: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Columns of the rows: classes, or numbers."""
        return self.task.outputs

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, H, W) of one image, (F,) of a row of a table."""
        return self.signature.shape

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Side of square images, H = W."""
        return self.shape[-1]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel of images, of pixels scaled to [0, 1]; of each column or channel of numbers."""
        return _flat(self.train.mean)

    @property
    def std(self) -> tuple[float, ...]:
        return _flat(self.train.std)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result records of the data beside its content key."""
        return {"split": self.split} | ({"images_left_out": self.left_out} if self.left_out else {})


def load(data: fields.Data, root: Path, folder: Path = Path(), task: str | None = None) -> DataSet:
    """Read a data set and cut it as the suite says.

    Args:
        data: which set, and how it is cut.
        root: where data sets lie.
        folder: where a relative `./mine.py:load` starts.
        task: name of the task; None is what the data set's file declares.

    Raises:
        UserError: files are missing, damaged or inconsistent; unknown name or option; `val` is too large.
    """
    named = task or plugins.declared_task(data.name, folder)
    kind = _kind(named, folder)
    raw = _read(data, Path(root), folder)
    if isinstance(raw, RawNumbers):
        return _numbers(data, checked_numbers(data.name, raw, kind.kind), named, kind)
    return _images_of(data, _checked(data.name, raw), named, kind)


def _images_of(data: fields.Data, raw: Raw, named: str, kind: type[Task]) -> DataSet:
    from kdbench.data.batches import Images

    labels = np.asarray(raw.train_labels, dtype=np.int64)
    images = _images(raw.train_images)
    if raw.val_images is None:
        train_index, val_index = cut(labels, raw.val if data.val is None else data.val, data.fraction, data.split_seed)
        held_out = (images[val_index], labels[val_index])
    else:
        if data.val is not None:
            raise UserError(
                f"data.val: {data.val} cuts validation from the training set, but data set '{data.name}' "
                f"brings a validation split of its own (data.options.val); give one of them"
            )
        train_index, _ = cut(labels, 0, data.fraction, data.split_seed)
        held_out = (_images(raw.val_images), np.asarray(raw.val_labels, dtype=np.int64))
        val_index = np.arange(len(held_out[1]), dtype=np.int64)
    train, val, test = (
        Images(*_owned(*part), mean=tuple(raw.mean), std=tuple(raw.std))
        for part in ((images[train_index], labels[train_index]), held_out, (raw.test_images, raw.test_labels))
    )
    return DataSet(
        name=data.name,
        task=_task(data.name, raw.task, named, kind, outputs=raw.classes).fitted(train.labels),
        signature=Signature.of(tuple(images.shape[1:])),
        train=train,
        val=val,
        test=test,
        fingerprint=fingerprint(raw),
        split=_digest(train_index, val_index),
        notes=raw.notes,
        left_out=raw.left_out,
        class_names=tuple(raw.class_names),
    )


def _numbers(data: fields.Data, raw: RawNumbers, named: str, kind: type[Task]) -> DataSet:
    from kdbench.data.batches import Numbers

    values, labels = np.asarray(raw.train, dtype=np.float32), np.asarray(raw.train_labels)
    strata = labels.astype(np.int64) if kind.kind == "categorical" else np.zeros(len(labels), dtype=np.int64)
    train_index, val_index = cut(strata, raw.val if data.val is None else data.val, data.fraction, data.split_seed)
    mean, std = map(torch.from_numpy, statistics(values[train_index]))
    train, val, test = (
        Numbers(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y)), mean, std)
        for x, y in (
            (values[train_index], labels[train_index]),
            (values[val_index], labels[val_index]),
            (raw.test, raw.test_labels),
        )
    )
    own = {"outputs": raw.outputs} | ({"unit": "row"} if values.ndim == 2 else {})
    return DataSet(
        name=data.name,
        task=_task(data.name, raw.task, named, kind, **own).fitted(train.labels),
        signature=Signature.of(tuple(values.shape[1:])),
        train=train,
        val=val,
        test=test,
        fingerprint=raw.fingerprint or _digest(values, labels, np.asarray(raw.test), np.asarray(raw.test_labels)),
        split=_digest(train_index, val_index),
        notes=raw.notes,
    )


def _kind(named: str, folder: Path) -> type[Task]:
    try:
        return plugins.plugin_class("tasks", named, folder, Task)  # type: ignore[type-abstract]
    except LookupError as error:
        raise UserError(f"task: {error.args[0]}") from error


def _task(name: str, given: Task | str | None, named: str, kind: type[Task], **own: Any) -> Task:
    """The task that a data set's file gave, or the one that was named, with what follows from the data.

    Raises:
        UserError: both are there and differ.
    """
    said = given if isinstance(given, str) else type(given).__name__
    if given is None or given == named:
        return kind(**own)
    if isinstance(given, kind):
        return given
    raise UserError(
        f"data set '{name}' brings the task '{said}', and the suite takes it for '{named}': write `task: ...` into "
        f'the suite, or TASK = "..." into the data set\'s file'
    )


def default_root() -> Path:
    """$KDBENCH_DATA, else ~/.cache/kdbench."""
    return Path(os.environ.get("KDBENCH_DATA") or Path.home() / ".cache" / "kdbench")


def found(root: Path) -> dict[str, str]:
    """Each data set by name: "embedded", "found (IDX in MNIST/raw)" (relative to `root`) or "missing: expects ...".

    Of an installed package's, only the package is known before it is read.
    """
    own = {name: _module(stem).status(name, Path(root)) for name, stem in plugins.declared("data").items()}
    return own | {name: plugins.origin("data", name) for name in plugins.installed_names("data")}


def fingerprint(raw: Raw) -> str:
    """Of pixels and labels as stored, train then test, then a validation split of one's own.

    Shapes count, file formats do not. Files bring their own.
    """
    if raw.fingerprint is not None:
        return raw.fingerprint
    parts: tuple[Any, ...] = (raw.train_images, raw.train_labels, raw.test_images, raw.test_labels)
    if raw.val_images is not None:
        parts += (raw.val_images, raw.val_labels)
    return _digest(*(np.asarray(part) if np.ndim(part) > 1 else np.asarray(part, dtype="<i8") for part in parts))


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _flat(values: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values).flatten().tolist()) if not isinstance(values, tuple) else values


def _images(images: Any) -> Any:
    return images if isinstance(images, Files) else np.asarray(images)


def _owned(images: Any, labels: Any) -> tuple[Any, Tensor]:
    if isinstance(images, Files):
        return images, torch.from_numpy(np.require(labels, np.int64, ["C", "W"]))
    # Arrays over a file's bytes are read-only, which torch does not know: those are copied, others are not.
    owned = (np.require(images, np.uint8, ["C", "W"]), np.require(labels, np.int64, ["C", "W"]))
    return torch.from_numpy(owned[0]), torch.from_numpy(owned[1])


def _module(stem: str) -> Any:
    return importlib.import_module(f"kdbench.data.{stem}")


def _read(data: fields.Data, root: Path, folder: Path) -> Any:
    arguments: tuple[Any, ...]
    read: Callable[..., Any]
    declared = plugins.declared("data")
    if plugins.is_file(data.name):
        read, arguments = plugins.from_file(data.name, folder), (root,)
    elif data.name in declared:
        read, arguments = _module(declared[data.name]).read, (data.name, root)
    elif data.name in plugins.installed_names("data"):
        read, arguments = plugins.installed_function("data", data.name), (root,)
    else:
        known = plugins.names("data")
        raise UserError(
            f"data.name: there is no data set '{data.name}'{did_you_mean(data.name, known)}; choose one of "
            f"{', '.join(known)}, or a Python file's function (./mine.py:load)"
        )
    signature, options = inspect.signature(read), dict(data.options)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    own = None
    if "val" not in signature.parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        own = options.pop("val", None)  # every set can have it; a reader with such an option reads it itself
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise UserError(f"data.options of '{data.name}': {error}") from error
    raw = read(*arguments, **options)
    return raw if own is None else with_own(_checked(data.name, raw), data.name, root, own)


def _checked(name: str, raw: Any) -> Raw:
    """Raises UserError unless the arrays are what `Raw` promises: user's files are checked like ours."""
    if not isinstance(raw, Raw):
        raise UserError(f"data set '{name}' must return a kdbench.Raw or RawNumbers, not {type(raw).__name__}")
    shape = np.shape(raw.train_images)
    for part in ("train", "test", *(() if raw.val_images is None else ("val",))):
        images, labels = _images(getattr(raw, f"{part}_images")), np.asarray(getattr(raw, f"{part}_labels"))
        said = f"data set '{name}': {part}"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
            raise UserError(f"{said}_images must be uint8 (N, channels, H, H), not {images.dtype} {images.shape}")
        if images.shape[1:] != shape[1:]:
            raise UserError(f"{said}_images are {images.shape[1:]}, train_images {shape[1:]}; make them the same")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(labels):
            raise UserError(
                f"{said}_labels must be integers ({len(images)},), one for each of at least one image, "
                f"not {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= raw.classes:
            raise UserError(f"{said}_labels go from {labels.min()} to {labels.max()}; there are {raw.classes} classes")
    if raw.classes < 2 or (np.asarray(raw.train_labels) == np.asarray(raw.train_labels)[0]).all():
        raise UserError(f"data set '{name}' has one class only: there is nothing to tell apart; it needs two or more")
    if raw.class_names and len(raw.class_names) != raw.classes:
        raise UserError(f"data set '{name}': {len(raw.class_names)} class_names for {raw.classes} classes")
    if not len(raw.mean) == len(raw.std) == shape[1] or min(raw.std) <= 0:
        raise UserError(f"data set '{name}': mean and std need {shape[1]} values each, std above 0")
    return raw

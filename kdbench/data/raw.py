"""What a data set's file returns, and how its files are found, read and refused.

A reader never guesses: a missing, truncated or inconsistent file becomes one sentence that names it.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdbench.data.files import Files
from kdbench.errors import UserError
from kdbench.tasks import Task

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Raw:
    """A data set as stored, before anything is cut from it.

    Images are uint8 (N, channels, H, H), labels integers (N,) in [0, classes); numpy arrays or CPU tensors. `mean` and
    `std` are per channel, of pixels scaled to [0, 1]. `val` is how many training examples are cut for validation where
    the suite does not say.

    `val_images` and `val_labels` are a validation split of one's own: then none is cut from the training set.
    `class_names` are in the order of the labels, where they are known. `task` is a task or its name; None is whatever
    the suite or the file's `TASK` says.

    A set too large for memory has `kdbench.data.files.Files` as images, and then a fingerprint of its own. `notes` are
    warnings for the user; `left_out` counts images that could not be decoded.
    """

    train_images: Array | Files
    train_labels: Array
    test_images: Array | Files
    test_labels: Array
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    val: int
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()
    left_out: int = 0
    val_images: Array | Files | None = None
    val_labels: Array | None = None
    class_names: tuple[str, ...] = ()
    task: Task | str | None = None


@dataclass(frozen=True)
class Layout:
    """One official way to store a data set: `files` (each with its accepted spellings) together in one of `folders`."""

    label: str
    folders: tuple[str, ...]  # relative to the root, preferred first; "." is the root itself
    files: tuple[tuple[str, ...], ...]

    def present(self, folder: Path) -> list[Path | None]:
        """The path of each file in this folder, None where it is missing."""
        return [next((folder / name for name in names if (folder / name).is_file()), None) for names in self.files]

    def expected(self) -> str:
        return f"{', '.join(names[0] for names in self.files)} in {self.folders[0]}/"


@dataclass(frozen=True)
class Found:
    layout: Layout
    folder: str
    paths: tuple[Path, ...]  # in the order of `layout.files`


def find(root: Path, layouts: Sequence[Layout]) -> Found | None:
    """The first complete layout under `root`."""
    for layout in layouts:
        for folder in layout.folders:
            paths = [path for path in layout.present(root / folder) if path is not None]
            if len(paths) == len(layout.files):
                return Found(layout, folder, tuple(paths))
    return None


def describe(root: Path, layouts: Sequence[Layout]) -> str:
    """One line for `kdbench doctor`: "found (IDX in MNIST/raw)" or "missing: expects ..."."""
    if hit := find(root, layouts):
        return f"found ({hit.layout.label} in {hit.folder})"
    return f"missing: {_missing(root, layouts)}"


def locate(name: str, root: Path, layouts: Sequence[Layout], download: bool) -> Found:
    """The files of a data set; torchvision fetches them first where that is allowed and they are missing.

    Raises UserError, saying which files are expected where, and how to point to them.
    """
    if type(download) is not bool:
        raise UserError(f"data.options.download of '{name}' is true or false, not {download!r}")
    hit = find(root, layouts)
    if hit is None and (download or os.environ.get("KDBENCH_DOWNLOAD") == "1"):
        fetch(name, root)
        hit = find(root, layouts)
    if hit is None:
        raise UserError(
            f"data set '{name}' is not under {root}: {_missing(root, layouts)}; point to the folder with --data-root "
            "or KDBENCH_DATA, or set KDBENCH_DOWNLOAD=1 to let torchvision download it"
        )
    return hit


def _missing(root: Path, layouts: Sequence[Layout]) -> str:
    for layout in layouts:
        for folder in layout.folders:
            paths = layout.present(root / folder)
            absent = [names[0] for names, path in zip(layout.files, paths, strict=True) if path is None]
            if len(absent) < len(paths):
                return f"{folder}/ lacks {', '.join(absent)}"
    return "expects " + ", or ".join(layout.expected() for layout in layouts)


def fetch(name: str, root: Path) -> None:
    """Let torchvision download a data set into `root`. Raises UserError when it cannot."""
    kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}[name]
    try:
        from torchvision import datasets

        getattr(datasets, kind)(root=str(root), download=True)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"torchvision could not download '{name}' into {root} ({reason}): copy the files there by hand, "
            "or point to them with --data-root or KDBENCH_DATA"
        ) from error


def damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}): fetch this file again")


def content(path: Path) -> bytes:
    """The bytes of a file, decompressed where its name ends in .gz. Raises UserError, naming the file."""
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    if path.suffix != ".gz":
        return stored
    try:
        return gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"gzip: {error}") from error


def check_labels(path: Path, labels: Array, classes: int, kind: str = "label") -> None:
    """Raises UserError when a label is not below `classes`."""
    highest = int(labels.max())
    if highest >= classes:
        where = int(labels.argmax())
        raise damaged(path, f"{kind} {highest} at position {where}, but there are {classes} classes")

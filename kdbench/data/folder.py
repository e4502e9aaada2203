"""`folder`: any ImageNet-style directory of image files, decoded by worker processes while training.

    DIR/train/CLASS/*.JPEG      DIR/val/CLASS/*.JPEG        (or `validation`, or `test`, instead of `val`)

The held-out folder is the test split; validation is cut from train (protocol, rule 1), by default 50 images a class or
a tenth of train if that is less. Classes are the sorted names of the folders. Images that cannot be decoded whole are
found when the folder is indexed, named, counted, and left out. See docs/adr/0009-larger-data.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.data.files import Files, Geometry, Pool, Reader, default_workers
from kdbench.data.folder_index import SUFFIXES, Index, checked, listing, places
from kdbench.data.raw import Raw
from kdbench.errors import UserError

NAMES = ("folder",)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images
HELD_OUT = ("val", "validation", "test")
VAL_A_CLASS = 50
LARGEST = 4096


def read(
    name: str,
    root: Path,
    *,
    path: str,
    size: int = 224,
    resize: int | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    test: str | None = None,
    workers: int | None = None,
) -> Raw:
    """The set, indexed; no pixel stays in memory.

    Args:
        path: the folder, relative to the data root or absolute.
        size: side of the square images that networks see.
        resize: for evaluation the shorter side gets this length before the middle is cut out; default size / 0.875.
        interpolation: bilinear or bicubic.
        mean, std: of the three channels, of pixels scaled to [0, 1].
        test: name of the held-out folder; default: the first of val, validation, test that is there.
        workers: processes that decode; default: one for each CPU, at most 16; 0: none. Changes no number.

    Raises:
        UserError: the folder or a part of it is missing or empty, classes disagree, or an option is impossible.
    """
    geometry = _geometry(size, resize, interpolation)
    mean, std = (_channels(key, values) for key, values in (("mean", mean), ("std", std)))
    if workers is not None and (type(workers) is not int or workers < 0):
        raise UserError(f"data.options.workers of '{name}' is a whole number from 0, not {workers!r}")
    count = default_workers() if workers is None else workers
    folder, held_out = _located(name, root, path, test)
    parts = {part: listing(folder, part) for part in ("train", held_out)}
    classes = _classes(folder, parts)
    files = sorted(file for part in parts.values() for images in part.values() for file in images)
    if not files:
        raise UserError(f"{folder} holds no image files ({', '.join(SUFFIXES)})")
    from kdbench.data import default_root

    index = checked(folder, files, places(folder, root, default_root()), count)
    labels = _labels(index, classes)
    good = index.broken == ""
    kept, kept_labels = index.take(good), labels[good]
    is_train = np.char.startswith(kept.names, b"train/")
    for part, is_in in (("train", is_train), (held_out, ~is_train)):
        have = np.bincount(kept_labels[is_in], minlength=len(classes))
        if not have.any() or (part == "train" and not have.all()):
            empty = folder / part if not have.any() else folder / part / classes[int(np.argmin(have))]
            raise UserError(f"{empty} holds no image that can be decoded: add some, or remove the folder")
    reader = Reader(str(folder).encode("utf-8", "surrogateescape"), kept.names, geometry)
    pool = Pool(reader, kept.heights, kept.widths, count)
    train, rest = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    return Raw(
        train_images=Files(pool, train),
        train_labels=kept_labels[train],
        test_images=Files(pool, rest),
        test_labels=kept_labels[rest],
        mean=mean,
        std=std,
        classes=len(classes),
        val=max(1, min(VAL_A_CLASS * len(classes), len(train) // 10)),
        fingerprint=_fingerprint(classes, held_out, kept),
        notes=_notes(index, folder),
        left_out=int((~good).sum()),
    )


def status(name: str, root: Path) -> str:
    """The folders below the data root that look like such a set."""
    try:
        found = sorted(entry.name for entry in root.iterdir() if (entry / "train").is_dir() and _held_out(entry))
    except OSError:
        found = []
    if found:
        return f"found ({', '.join(found)}): choose with data.options.path"
    return "missing: expects DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg; data.options.path names DIR"


def _held_out(folder: Path) -> str | None:
    return next((part for part in HELD_OUT if (folder / part).is_dir()), None)


def _located(name: str, root: Path, path: str, test: str | None) -> tuple[Path, str]:
    if not isinstance(path, str) or not path:
        raise UserError(f"data.options.path of '{name}' is the folder's name, not {path!r}")
    folder = root / Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"data set '{name}' is not under {root}: there is no folder {path} (data.options.path); point to what "
            "holds it with --data-root or KDBENCH_DATA"
        )
    if not (folder / "train").is_dir():
        raise UserError(f"{folder} has no folder train/: expects train/CLASS/ and val/CLASS/ with image files")
    if test is not None and (test == "train" or not isinstance(test, str) or not (folder / test).is_dir()):
        raise UserError(f"data.options.test of '{name}': {folder} has no held-out folder {test}")
    held_out = test or _held_out(folder)
    if held_out is None:
        raise UserError(f"{folder} has no held-out folder: expects val/ (or validation/, or test/) beside train/")
    return folder, held_out.strip("/")


def _classes(folder: Path, parts: dict[str, dict[str, Any]]) -> list[str]:
    (train, held_out) = parts
    for part in parts:
        if not parts[part]:
            flat = any(file.suffix.lower() in SUFFIXES for file in (folder / part).iterdir())
            hint = ": its images must lie in one folder for each class" if flat else ""
            raise UserError(f"{folder / part} has no class folders{hint}")
    only = {
        part: sorted(set(parts[part]) - set(parts[other])) for part, other in ((train, held_out), (held_out, train))
    }
    if any(only.values()):
        said = "; ".join(f"only {part}/ has {_some(names)}" for part, names in only.items() if names)
        raise UserError(f"{folder}: {train}/ and {held_out}/ must have the same classes: {said}")
    return sorted(parts[train])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _labels(index: Index, classes: list[str]) -> Any:
    number = {name: i for i, name in enumerate(classes)}
    every = range(len(index.names))
    return np.array([number[name.split("/")[1]] for name in index.where(np.array(every))], dtype=np.int64)


def _fingerprint(classes: list[str], held_out: str, kept: Index) -> str:
    """Of the class list and of every image that is used: its name and its bytes. Broken ones are as if absent."""
    digest = hashlib.sha256(json.dumps(["folder", classes, held_out]).encode())
    for name, sha in zip(kept.names.tolist(), kept.sha256.tolist(), strict=True):
        digest.update(name + b"\0" + sha.encode())
    return digest.hexdigest()[:16]


def _notes(index: Index, folder: Path) -> tuple[str, ...]:
    broken = np.flatnonzero(index.broken != "")
    if not len(broken):
        return ()
    said = [f"{name} ({why})" for name, why in zip(index.where(broken), index.broken[broken].tolist(), strict=True)]
    many = f"{len(broken)} of {len(index.names)} images in {folder.name} cannot be decoded and are left out"
    return (f"{many}: {_some(said)}",)


def _geometry(size: int, resize: int | None, interpolation: str) -> Geometry:
    if type(size) is not int or not 1 <= size <= LARGEST:
        raise UserError(f"data.options.size is a whole number of pixels, 1 to {LARGEST}, not {size!r}")
    if resize is None:
        resize = round(size / 0.875)
    if type(resize) is not int or not size <= resize <= 2 * LARGEST:
        raise UserError(f"data.options.resize is a whole number of pixels, at least the size ({size}), not {resize!r}")
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"data.options.interpolation is bilinear or bicubic, not {interpolation!r}")
    return Geometry(size, resize, interpolation)


def _channels(key: str, values: Any) -> tuple[float, float, float]:
    good = isinstance(values, list | tuple) and len(values) == 3
    if not good or any(type(v) not in (int, float) or not (v > 0 or (key == "mean" and v == 0)) for v in values):
        raise UserError(f"data.options.{key} is three numbers, of pixels scaled to [0, 1], not {values!r}")
    return float(values[0]), float(values[1]), float(values[2])

"""`folder`: any ImageNet-style directory of image files, decoded by worker processes while training.

    DIR/train/CLASS/*.JPEG      DIR/val/CLASS/*.JPEG        (or `validation`, or `test`, instead of `val`)

The held-out folder is the test split; validation is cut from train (protocol, rule 1), by default 50 images a class or
a tenth of train if that is less, or is a third folder, which `val` names. Classes are the sorted names of the folders.
Images that cannot be decoded whole are found when the folder is indexed, named, counted, and left out; so are those
that lie in no class folder, in hidden ones, or among a file server's thumbnails. See docs/adr/0009-larger-data.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.data.files import Files, Geometry, Pool, Reader, default_workers
from kdbench.data.folder_index import SUFFIXES, Index, Listing, checked, listing
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
    val: str | None = None,
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
        val: name of a folder of one's own for validation; default: validation is cut from train.
        workers: processes that decode; default: one for each CPU, at most 16; 0: none. Changes no number.

    Raises:
        UserError: the folder or a part of it is missing or empty, there is one class, classes disagree, or an option is
            impossible.
    """
    geometry = _geometry(size, resize, interpolation)
    mean, std = (_channels(key, values) for key, values in (("mean", mean), ("std", std)))
    if workers is not None and (type(workers) is not int or workers < 0):
        raise UserError(f"data.options.workers of '{name}' is a whole number from 0, not {workers!r}")
    count = default_workers() if workers is None else workers
    folder, parts = _located(name, root, path, test, val)
    found = {part: listing(folder, part) for part in parts}
    classes = _classes(folder, found)
    files = sorted(file for part in found.values() for images in part.classes.values() for file in images)
    if not files:
        raise UserError(f"{folder} holds no image files ({', '.join(SUFFIXES)})")
    index = checked(folder, files, count)
    labels = _labels(index, classes)
    good = index.broken == ""
    kept, kept_labels = index.take(good), labels[good]
    rows = {part: np.flatnonzero(np.char.startswith(kept.names, os.fsencode(f"{part}/"))) for part in parts}
    counts = {part: np.bincount(kept_labels[rows[part]], minlength=len(classes)) for part in parts}
    for part, have in counts.items():
        if not have.any() or (part == "train" and not have.all()):
            empty = folder / part if not have.any() else folder / part / classes[int(np.argmin(have))]
            raise UserError(f"{empty} holds no image that can be decoded: add some, or remove the folder")
    reader = Reader(os.fsencode(folder), kept.names, geometry)
    pool = Pool(reader, kept.heights, kept.widths, count)
    split = {part: (Files(pool, rows[part]), kept_labels[rows[part]]) for part in parts}
    train, held_out, *own = parts
    return Raw(
        *split[train],
        *split[held_out],
        mean=mean,
        std=std,
        classes=len(classes),
        val=max(1, min(VAL_A_CLASS * len(classes), len(rows["train"]) // 10)),
        fingerprint=_fingerprint(classes, parts[1:], kept),
        notes=(
            *_broken(index, folder),
            *_passed(found, folder),
            *_unseen(classes, counts),
            *_repeated({part: kept.sha256[rows[part]] for part in parts}),
        ),
        left_out=int((~good).sum()),
        val_images=split[own[0]][0] if own else None,
        val_labels=split[own[0]][1] if own else None,
        class_names=tuple(classes),
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


def _held_out(folder: Path, but: str | None = None) -> str | None:
    return next((part for part in HELD_OUT if part != but and (folder / part).is_dir()), None)


def _located(name: str, root: Path, path: str, test: str | None, val: str | None) -> tuple[Path, tuple[str, ...]]:
    """The set's folder, and the names of its parts: train, held-out, and validation where it has a folder."""
    if not isinstance(path, str) or not path:
        raise UserError(f"data.options.path of '{name}' is the folder's name, not {path!r}")
    folder = root / Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"data set '{name}' is not under {root}: there is no folder {path} (data.options.path); point to what "
            "holds it with --data-root or KDBENCH_DATA"
        )
    if not (folder / "train").is_dir():
        inner = sorted(entry.name for entry in folder.iterdir() if (entry / "train").is_dir())
        hint = f"; {inner[0]}/ in it has one: data.options.path: {Path(path) / inner[0]}" if inner else ""
        raise UserError(f"{folder} has no folder train/: expects train/CLASS/ and val/CLASS/ with image files{hint}")
    for key, part in (("test", test), ("val", val)):
        if part is not None and not _is_part(folder, part):
            raise UserError(f"data.options.{key} of '{name}': {folder} has no held-out folder {part}")
    held_out = test or _held_out(folder, but=val)
    if held_out is None:
        beside = f" and {val}/" if val else ""
        raise UserError(
            f"{folder} has no held-out folder: expects val/ (or validation/, or test/) beside train/{beside}"
        )
    if val == held_out:
        raise UserError(f"data.options.val of '{name}': {val}/ is the test split (data.options.test); choose another")
    return folder, ("train", held_out, *([val] if val else []))


def _is_part(folder: Path, part: str) -> bool:
    """Whether it names a folder beside train/."""
    return (
        isinstance(part, str) and part not in ("", ".", "..", "train") and "/" not in part and (folder / part).is_dir()
    )


def _classes(folder: Path, found: dict[str, Listing]) -> list[str]:
    """The names of the classes. Raises UserError unless there are two or more, the same in every part."""
    for part, listed in found.items():
        if not listed.classes:
            hint = ": its images must lie in one folder for each class" if listed.beside else ""
            raise UserError(f"{folder / part} has no class folders{hint}")
    (train, first), *others = found.items()
    if len(first.classes) == 1:
        raise UserError(_one_class(folder / train, *first.classes))
    for part, listed in others:
        only = {train: sorted(set(first.classes) - set(listed.classes))}
        only[part] = sorted(set(listed.classes) - set(first.classes))
        if any(only.values()):
            said = "; ".join(f"only {one}/ has {_some(names)}" for one, names in only.items() if names)
            raise UserError(f"{folder}: {train}/ and {part}/ must have the same classes: {said}")
    return sorted(first.classes)


def _one_class(train: Path, only: str) -> str:
    inner = sorted(entry.name for entry in (train / only).iterdir() if entry.is_dir() and entry.name[0] not in ".@")
    if len(inner) > 1:
        return (
            f"{train} holds one folder, {only}/, and what look like the classes lie inside it ({_some(inner)}): one "
            f"folder too many; move them up into {train.name}/ and remove {only}/, in the other parts too"
        )
    return f"{train} has one class only ({only}): there is nothing to tell apart; it needs two or more class folders"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _labels(index: Index, classes: list[str]) -> Any:
    number = {name: i for i, name in enumerate(classes)}
    every = range(len(index.names))
    return np.array([number[name.split("/")[1]] for name in index.where(np.array(every))], dtype=np.int64)


def _fingerprint(classes: list[str], others: Sequence[str], kept: Index) -> str:
    """Of the class list and of every image that is used: its name and its bytes. Broken ones are as if absent.

    Args:
        others: names of the parts beside train.
    """
    digest = hashlib.sha256(json.dumps(["folder", classes, *others]).encode())
    for name, sha in zip(kept.names.tolist(), kept.sha256.tolist(), strict=True):
        digest.update(name + b"\0" + sha.encode())
    return digest.hexdigest()[:16]


def _broken(index: Index, folder: Path) -> Iterator[str]:
    broken = np.flatnonzero(index.broken != "")
    if len(broken):
        named = zip(index.where(broken), index.broken[broken].tolist(), strict=True)
        many = f"{len(broken)} of {len(index.names)} images in {folder.name} cannot be decoded and are left out"
        yield f"{many}: {_some([f'{name} ({why})' for name, why in named])}"


def _passed(found: dict[str, Listing], folder: Path) -> Iterator[str]:
    """Images that are no part of the set because of where they lie."""
    for kind, why in (
        ("beside", "lie in no class folder"),
        ("hidden", "have a name, or lie in a folder, that begins with a dot"),
        ("system", "are what a file server or system keeps (thumbnails, deleted files)"),
    ):
        names = sorted(name for part in found.values() for name in getattr(part, kind))
        if names:
            yield f"{len(names)} images in {folder.name} {why} and are left out: {_some(names)}"


def _unseen(classes: list[str], counts: dict[str, Any]) -> Iterator[str]:
    """Classes that a part cannot say anything about."""
    for part, have in counts.items():
        without = [classes[i] for i in np.flatnonzero(have == 0)]
        if without:
            yield (
                f"{len(without)} of {len(classes)} classes have no image in {part}/, where they are not measured: "
                + (_some(without))
            )


def _repeated(sha256: dict[str, Any]) -> Iterator[str]:
    """Images that are measured although they are trained on."""
    (train, known), *others = sha256.items()
    for part, sha in others:
        if many := int(np.isin(sha, known).sum()):
            yield f"{many} of {len(sha)} images of {part}/ are in {train}/ too, byte for byte; scores are too good"


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

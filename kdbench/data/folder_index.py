"""What a folder of images holds: found by name, every file decoded once, the findings kept for the next start.

A file that cannot be decoded whole is found here, before anything trains, and not in the fifth epoch. The index knows
files by name, length and time of change, so the next start only looks at what is new. It is kept in the user's
cache, never among the data; an interrupted check continues where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.files import CHUNK, Checker, arriving, loader
from kdbench.errors import UserError
from kdbench.files import cache, write_atomically

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
KEPT_BY_SYSTEMS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found")  # thumbnails, deleted files
FEW = 200  # files that the main process checks itself
SHOWN = 5000  # files from which on the check says that it is at work
SECONDS = 60.0  # between two times at which findings are kept


@dataclass(frozen=True)
class Index:
    """One row for each file, sorted by name."""

    names: NDArray[np.bytes_]  # "train/n01440764/x.JPEG" as the file system spells it
    lengths: NDArray[np.int64]  # bytes
    changed: NDArray[np.int64]  # nanoseconds
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    sha256: NDArray[np.str_]  # of the bytes, 32 hex digits
    broken: NDArray[np.str_]  # what is wrong; "" where the file is whole

    def take(self, rows: Any) -> Index:
        return Index(*(getattr(self, field.name)[rows] for field in fields(self)))

    def where(self, rows: NDArray[np.int64]) -> list[str]:
        return [os.fsdecode(bytes(name)) for name in self.names[rows]]


File = tuple[bytes, int, int]  # name below the set's folder, bytes, time of change


@dataclass
class Listing:
    """The image files below one part of a set: those of each class, and those that are passed over."""

    classes: dict[str, list[File]] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)  # images in no class folder
    hidden: list[str] = field(default_factory=list)  # images whose name, or a folder's above them, begins with a dot
    system: list[str] = field(default_factory=list)  # images that a file server keeps: thumbnails, deleted ones


def listing(folder: Path, part: str) -> Listing:
    """What lies below `folder`/`part`, by name. A class is a folder; images may lie in folders below it.

    Raises:
        UserError: a folder cannot be read.
    """
    found = Listing()
    try:
        for entry in sorted(os.scandir(folder / part), key=lambda entry: entry.name):
            name = f"{part}/{entry.name}"
            if entry.is_dir() and not _passed(entry.name):
                found.classes[entry.name] = sorted(_images(Path(entry.path), name, found))
            else:
                found.beside += [os.fsdecode(file) for file, *_ in _entry(entry, name, found)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from error
    return found


def _images(folder: Path, name: str, found: Listing) -> Iterator[File]:
    for entry in os.scandir(folder):
        yield from _entry(entry, f"{name}/{entry.name}", found)


def _entry(entry: os.DirEntry[str], name: str, found: Listing) -> Iterator[File]:
    """The images of a file or folder; those that are passed over are noted instead."""
    if entry.name.startswith("._"):  # what macOS writes beside each file on foreign disks: no image
        return
    if entry.is_dir():
        inside = _images(Path(entry.path), name, found)
    elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
        facts = entry.stat()
        inside = iter([(os.fsencode(name), facts.st_size, facts.st_mtime_ns)])
    else:
        return
    if _passed(entry.name):
        passed = found.hidden if entry.name[0] == "." else found.system
        passed += [os.fsdecode(file) for file, *_ in inside]
        return
    yield from inside


def _passed(name: str) -> bool:
    return name[0] == "." or name in KEPT_BY_SYSTEMS


def checked(folder: Path, files: list[File], workers: int) -> Index:
    """The index of these files, sorted by name: as far as it is kept; the rest is decoded now, and kept."""
    place = place_of(folder)
    names = np.array([name for name, *_ in files], dtype=np.bytes_)
    lengths = np.array([length for _, length, _ in files], dtype=np.int64)
    changed = np.array([time_ for *_, time_ in files], dtype=np.int64)
    kept = _kept(place)
    if kept is not None and all(
        np.array_equal(getattr(kept, name), value)
        for name, value in (("names", names), ("lengths", lengths), ("changed", changed))
    ):
        return kept
    known: dict[tuple[bytes, int, int], int] = {}
    if kept is not None:
        known = {key: row for row, key in enumerate(_keys(kept.names, kept.lengths, kept.changed))}
    source = [known.get(key, -1) for key in _keys(names, lengths, changed)]
    facts: list[tuple[int, int, str, str] | None] = [None] * len(files)
    if kept is not None:
        columns = (kept.widths.tolist(), kept.heights.tolist(), kept.sha256.tolist(), kept.broken.tolist())
        facts = [None if row < 0 else tuple(column[row] for column in columns) for row in source]
    new = np.array([row for row, fact in enumerate(facts) if fact is None], dtype=np.int64)

    def index() -> Index:
        rows = np.array([row for row, fact in enumerate(facts) if fact is not None], dtype=np.int64)
        widths, heights, sha256, broken = zip(*(fact for fact in facts if fact is not None), strict=True)
        return Index(
            *(names[rows], lengths[rows], changed[rows]),
            *(np.array(widths, dtype=np.int32), np.array(heights, dtype=np.int32)),
            *(np.array(sha256, dtype=np.str_), np.array(broken, dtype=np.str_)),
        )

    saved = time.monotonic()
    try:
        for rows, found in _decoded(folder, names, new, workers):
            for row, fact in zip(rows.tolist(), found, strict=True):
                facts[row] = fact
            if time.monotonic() - saved > SECONDS:
                _keep(place, index())
                saved = time.monotonic()
    except BaseException:
        if any(fact is not None for fact in facts):
            _keep(place, index())
        raise
    whole = index()
    _keep(place, whole)
    return whole


def _keys(names: Any, lengths: Any, changed: Any) -> Iterator[tuple[bytes, int, int]]:
    return zip(names.tolist(), lengths.tolist(), changed.tolist(), strict=True)


def _decoded(
    folder: Path, names: NDArray[np.bytes_], rows: NDArray[np.int64], workers: int
) -> Iterator[tuple[NDArray[np.int64], list[tuple[int, int, str, str]]]]:
    pieces = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    source = loader(Checker(os.fsencode(folder), names), workers if len(rows) > FEW else 0, keep=False)
    source.sampler.pieces = pieces
    shown = _shown(len(rows), folder)
    for piece, found in zip(pieces, arriving(source), strict=True):
        yield piece, found
        next(shown)


def _shown(files: int, folder: Path) -> Iterator[None]:
    """A bar on stderr while many files are checked."""
    if files < SHOWN:
        while True:
            yield
    from rich.console import Console
    from rich.progress import track

    about = f"checking {files:,} images in {folder.name} (once)"
    for _ in track(range(-(-files // CHUNK)), about, console=Console(stderr=True), transient=True):
        yield
    yield


def _kept(place: Path) -> Index | None:
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as stored:
            index = Index(*(stored[field.name] for field in fields(Index)))
    except Exception:  # absent, damaged, of another version: then the files are checked again
        return None
    return index if len({len(getattr(index, field.name)) for field in fields(Index)}) == 1 else None


def _keep(place: Path, index: Index) -> None:
    """Where nothing can be written, the next start checks again: slower, not wrong."""
    payload = io.BytesIO()
    np.savez(payload, **{field.name: getattr(index, field.name) for field in fields(Index)})
    with contextlib.suppress(OSError):
        write_atomically(place, payload.getvalue())


def place_of(folder: Path) -> Path:
    """Where the index of a folder is kept."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return cache() / "index" / f"{folder.name}-{digest}.npz"

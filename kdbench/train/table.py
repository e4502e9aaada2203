"""What a frozen role answers on every view of every training example, on disk, filled when it is first needed.

A table is a file of rows of one length: D numbers in float32 and a digest of them, of their place and of all that the
table depends on. A row whose digest does not fit is not there: it was never written, was torn by a kill, or is damaged,
and is made again. So no lock, no flag and no order of writing is needed, however many processes fill a table at once,
and each of them writes the same bits.

It is read and written row by row and not mapped: a mapped page of a full disk, or of a file that somebody shortens,
kills the process, and mapped pages would count as the memory of the method that is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRAMMAR = 1  # raise it when the pixels of a view change
FOLDER = "views"
ROWS = 4096  # read at once
SMALL = 2**24  # bytes of a table that may be read as a whole,
FASTER = 2**13  # where that is no more than so many for each row that is wanted

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


class NoTable(Exception):
    """There is none, and why: a sentence."""


@dataclass(frozen=True)
class Table:
    """`cells` rows of `width` numbers; `salt` stands for all that they depend on."""

    path: Path
    cells: int
    width: int
    salt: int

    @property
    def row(self) -> int:
        return bytes_of_row(self.width)

    @property
    def size(self) -> int:
        return self.cells * self.row

    def read(self, cell_B: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, D) of these cells, and which of them are there (B,); on the CPU.

        Raises:
            OSError: the file cannot be read.
        """
        wanted = cell_B.numpy()
        rows, known = np.empty((len(wanted), self.width), np.float32), np.empty(len(wanted), bool)
        with self._opened() as file:
            small = self.size <= min(SMALL, FASTER * len(wanted))
            whole = self._bytes(file, range(1), self.size) if small else None
            for start in range(0, len(wanted), ROWS):
                part = slice(start, start + ROWS)
                raw = self._bytes(file, wanted[part].tolist(), self.row) if whole is None else whole[wanted[part]]
                words, sums = raw[:, :-2], np.ascontiguousarray(raw[:, -2:]).view(np.uint64)[:, 0]
                known[part] = sums == self._digests(wanted[part], words)
                rows[part] = words.view(np.float32)
        return torch.from_numpy(rows), torch.from_numpy(known)

    def write(self, cell_B: Tensor, rows_BD: Tensor) -> None:
        """Put rows into these cells.

        Raises:
            OSError: the file cannot be written.
        """
        cells, words = cell_B.numpy(), np.ascontiguousarray(rows_BD.numpy()).view(np.uint32)
        sums = self._digests(cells, words)[:, None].view(np.uint32)
        payload, row = np.concatenate([words, sums], axis=1).tobytes(), self.row
        with self._opened() as file:
            for number, cell in enumerate(cells.tolist()):
                os.pwrite(file, payload[number * row : (number + 1) * row], cell * row)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        try:
            if os.fstat(file).st_size != self.size:
                os.ftruncate(file, self.size)  # rows that nobody has written are holes
            yield file
        finally:
            os.close(file)

    def _bytes(self, file: int, places: Any, length: int) -> NDArray[np.uint32]:
        """The bytes at these multiples of `length`, as rows of words."""
        raw = b"".join([os.pread(file, length, place * length) for place in places])
        if len(raw) != len(places) * length:
            raise OSError(None, "it was shortened while it was read", str(self.path))
        return np.frombuffer(raw, np.uint32).reshape(-1, self.row // 4)

    def _digests(self, cells: NDArray[np.int64], words: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """64 bits of each row (B,): each step is a bijection, so that no change of one number goes unseen."""
        mixed = (cells.astype(np.uint64) + np.uint64(self.salt)) * _PRIME
        for column in words.T:
            mixed = (mixed ^ column) * _PRIME
            mixed ^= mixed >> _SHIFT
        return mixed


@dataclass(frozen=True)
class Shelf:
    """Where a frozen role keeps its tables.

    `identity` is what its answers depend on beside what the job adds (`Shelf.table`): weights, data, machine. `room` is
    how many bytes all tables of these runs may take.
    """

    folder: Path  # of the role, below `runs/teachers`
    identity: Mapping[str, Any]
    room: int
    warn: Callable[[str], None] = lambda sentence: None

    def table(self, examples: int, views: int, width: int, **identity: Any) -> Table:
        """The table of these answers, made if it is not there: then it has no rows.

        Raises:
            NoTable: it would take more than is left, of `room` or of the disk.
            OSError: it cannot be made.
        """
        said = {"grammar": GRAMMAR, "cells": [examples, views, width], **self.identity, **identity}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()
        made = Table(self.folder / FOLDER / f"{digest[:16]}.rows", examples * views, width, int(digest[16:31], 16))
        if not made.path.exists():
            left = self.room - sum(path.stat().st_size for path in tables(self.folder.parent))
            free = shutil.disk_usage(self.folder).free
            if made.size > left:
                raise NoTable(
                    f"its answers on {views} views take {shown(made.size)}, and --cache-gb leaves "
                    f"{shown(max(0, left))}; give more, or free some with `kdbench clean`"
                )
            if 2 * made.size > free:
                raise NoTable(f"its answers on {views} views take {shown(made.size)}: the disk is nearly full")
            made.path.parent.mkdir(exist_ok=True)
        return made


def shown(size: float) -> str:
    """ "2.9 GB", "0.47 MB" """
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"


def bytes_of_row(width: int) -> int:
    return 4 * width + 8


def tables(teachers: Path) -> list[Path]:
    """All tables of these runs, those that were set aside too."""
    return sorted(teachers.glob(f"*/{FOLDER}/*.rows*"))

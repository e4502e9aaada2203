"""What thousands of records say, kept for the next start: a suite's records without their curves, in one file.

Derived from the records and never more than a shortcut. A record counts as known while its size and times are those
that it was read with; any other is read and checked as always. An index that is damaged, of another folder or of
another version of the code is as none. It lies in the user's cache, never among the results.

Records of one cell differ in little, so a row holds only that, and the number of a template that holds the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench import files, result
from kdbench.files import cache, parsed, write_atomically
from kdbench.result import Cost, Result

MANY = 2000  # records from which on an index pays
SHARE = 50  # it is written anew when one record in so many is not as it says
SETTLED_NS = 2 * 10**9  # a record younger than this may change again without a change of its times

Row = list[Any]  # size, time of change, time of its entry (nanoseconds), template, key, seed, scores, cost


class Index:
    """The records of one folder as far as they are known; `read` each, then `keep`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.texts, self.templates = folder, list[str](), list[Result]()
        self.rows: dict[str, Row] = {}
        with contextlib.suppress(Exception):  # absent, damaged, of another folder or version: then all is read
            self.texts, self.templates, self.rows = _unpacked(place_of(folder).read_bytes(), folder)
        self.numbers = {text: number for number, text in enumerate(self.texts)}
        self.seen: dict[str, Row] = {}
        self.changed = 0

    def read(self, path: Path, whole: Callable[[Path], Result]) -> Result:
        """The record in a file, without curves. `whole` reads one that is not known; its errors pass."""
        facts = path.stat()
        times = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        row = self.rows.get(path.name)
        if row is None or row[:3] != times:
            made = whole(path)
            self.changed += 1
            row = [*times, *self._row(made)]
        if max(times[1:]) < time.time_ns() - SETTLED_NS:
            self.seen[path.name] = row
        _, _, _, number, key, seed, scores, cost = row
        template = self.templates[number]
        job = template.job | {"seed": seed} if "seed" in template.job else template.job
        spent = None if cost is None else Cost(*cost)
        return Result(**{**vars(template), "key": key, "seed": seed, "job": job, "scores": scores, "cost": spent})

    def _row(self, made: Result) -> Row:
        job = made.job | {"seed": None} if "seed" in made.job else made.job
        rest = dataclasses.replace(made, key="", seed=0, job=job, scores={}, cost=None, curves={})
        text = json.dumps(dataclasses.asdict(rest))
        if text not in self.numbers:
            self.numbers[text] = len(self.texts)
            self.texts.append(text)
            self.templates.append(rest)
        cost = None if made.cost is None else [getattr(made.cost, field.name) for field in dataclasses.fields(Cost)]
        return [self.numbers[text], made.key, made.seed, made.scores, cost]

    def keep(self) -> None:
        """Write what was read, where much of it is new or gone; where nothing can be written, the next start reads."""
        gone = len(self.rows.keys() - self.seen.keys())
        if (self.changed + gone) * SHARE <= len(self.seen):
            return
        used = {number: place for place, number in enumerate(dict.fromkeys(row[3] for row in self.seen.values()))}
        rows = {name: [*row[:3], used[row[3]], *row[4:]] for name, row in self.seen.items()}
        body = json.dumps([_code(), str(self.folder.resolve()), [self.texts[number] for number in used], rows])
        with contextlib.suppress(OSError):
            write_atomically(place_of(self.folder), _sealed(body.encode()), durable=False)


def _unpacked(content: bytes, folder: Path) -> tuple[list[str], list[Result], dict[str, Row]]:
    """Templates, as texts and as records, and rows.

    Raises:
        ValueError: they are not whole, of this folder, and of this code.
    """
    body = content.partition(b"\n")[2]
    if content != _sealed(body):
        raise ValueError("damaged")
    code, where, texts, rows = json.loads(body)
    if (code, where) != (_code(), str(folder.resolve())):
        raise ValueError("foreign")
    return texts, [parsed(Result, text) for text in texts], rows


def _sealed(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@functools.cache
def _code() -> str:
    """Of what checks records: known ones are not checked again, so that a change of it makes all unknown."""
    sources = (Path(str(source)).read_bytes() for source in (result.__file__, files.__file__, __file__))
    return hashlib.sha256(b"".join(sources)).hexdigest()


def place_of(folder: Path) -> Path:
    """Where the index of a folder of records is kept."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return cache() / "records" / f"{folder.name}-{digest}.json"

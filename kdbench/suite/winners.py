"""What tuning found: `leaderboard/tuned/<suite>/<pair>/<method>.json`, and the jobs of the tuned track.

A file holds neither paths nor hosts nor times; the same trials give the same bytes. Needs neither torch nor Optuna.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from kdbench.errors import UserError, printable
from kdbench.files import STRICT, Amount, Count, parsed, set_aside, write_atomically
from kdbench.suite.cell import cell_of
from kdbench.suite.job import Job, variant
from kdbench.suite.load import Suite


@dataclass(frozen=True)
class Winner:
    """The best configuration of one cell, and what finding it took."""

    __pydantic_config__ = STRICT

    suite: str
    pair: str
    method: str  # label in the suite
    space_hash: str
    overrides: dict[str, Any]  # dotted path -> value, laid over the suite's own; {} where that was the best
    knobs: dict[str, Any]  # every knob of the winning method, `over.` for what it wraps
    trials: Count  # finished, of any verdict
    pruned: Count
    failed: Count  # diverged, refused or beyond the constraints included
    gpu_seconds: Amount  # of training, over all trials
    metric: str
    value: float
    values: list[float]  # of the trials that have one, by number
    default_value: float | None  # of the first trial, the suite's own configuration; None where it has none
    epochs: Count
    seeds: list[Count]
    sampler: str
    objectives: list[str]
    pareto: list[dict[str, Any]] | None = None  # {"overrides", "values"} where there are several objectives
    rising: bool = True  # more of the metric is better

    @property
    def expected_best(self) -> list[float]:
        """Of n of the trials, n = 1, 2, ..."""
        return expected_best(self.values, rising=self.rising)

    def to_json(self) -> str:
        content = asdict(self)
        if self.pareto is None:
            del content["pareto"]
        if self.rising:
            del content["rising"]  # as in files of earlier versions
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Winner:
        """Raises ValueError, with a sentence: not such a file."""
        raw = from_json(text)
        if isinstance(raw, dict):
            raw.pop("expected_best", None)  # stored by earlier versions, from another formula: it follows from `values`
        winner = parsed(cls, json.dumps(raw))
        if not winner.values:
            raise ValueError("values is empty")
        json.dumps([winner.overrides, winner.knobs, winner.pareto], allow_nan=False)
        return winner


def expected_best(values: Sequence[float], *, rising: bool = True) -> list[float]:
    """Expected best of n of the N measured trials, drawn without replacement, for n = 1..N.

    sum_i V_i C(i-1, n-1) / C(N, n) over sorted V_1 <= ... <= V_N: the unbiased estimator of Tang et al., "Showing your
    work doesn't always work", ACL 2020, eq. 7. (Dodge et al., "Show your work", EMNLP 2019, draw with replacement,
    which is below the best value even at n = N.) Of a falling metric the expected lowest.
    """
    count = len(values)
    worst_first = sorted(values, reverse=not rising)
    return [
        sum(value * comb(i, n - 1) for i, value in enumerate(worst_first)) / comb(count, n) for n in range(1, count + 1)
    ]


def pareto_front(points: Sequence[Sequence[float]], rising: Sequence[bool]) -> list[int]:
    """Indices of the points that no other is at least as good as in everything and better in something."""
    signed = [[value if up else -value for value, up in zip(point, rising, strict=True)] for point in points]

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [i for i, point in enumerate(signed) if not any(beats(other, point) for other in signed)]


# files ---------------------------------------------------------------------------------------------------------------
def folder(root: Path, suite: str) -> Path:
    return root / "tuned" / suite


def path_of(root: Path, suite: str, pair: str, label: str) -> Path:
    return folder(root, suite) / pair / f"{label}.json"


def write(winner: Winner, root: Path) -> Path:
    """Raises UserError: the folder cannot be written."""
    path = path_of(root, winner.suite, winner.pair, winner.method)
    payload = winner.to_json().encode()
    try:
        if path.exists() and path.read_bytes() == payload:
            return path
        if path.exists() and isinstance(_opened(path), str):
            set_aside(path)
        write_atomically(path, payload)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot write what was tuned ({error.strerror}); free space or give --results DIR"
        ) from error
    return path


def read(root: Path, suite: str, pair: str, label: str) -> Winner | None:
    """The winner of a cell; None where it was not tuned.

    Raises:
        UserError: the file is damaged.
    """
    path = path_of(root, suite, pair, label)
    if not path.exists():
        return None
    found = _opened(path)
    if isinstance(found, str):
        raise UserError(f"{path}: damaged ({found}); `kdbench tune` sets it aside and writes it again")
    return found


def _opened(path: Path) -> Winner | str:
    """What is in a file, or what is wrong with it."""
    try:
        winner = Winner.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except OSError as error:
        return error.strerror or "unreadable"
    except ValueError as error:
        return str(error)
    if (winner.pair, winner.method) != (path.parent.name, path.stem):
        return "of another cell"
    return winner


def current(
    suite: Suite, root: Path, warn: Callable[[str], None] = lambda sentence: None
) -> tuple[dict[tuple[str, str], Winner], list[str]]:
    """The winners that the suite as it is now asks for, by (pair, label), and a sentence for each cell without one.

    A damaged file counts as none; `warn` receives a sentence that names it.
    """
    found: dict[tuple[str, str], Winner] = {}
    notes: list[str] = []
    if suite.file.tune is None:
        return {}, []
    for pair, label in suite.cells:
        path = path_of(root, suite.file.name, pair, label)
        winner = _opened(path) if path.exists() else None
        if winner is None:
            notes.append(f"{pair}/{label} has not been tuned")
            continue
        if not isinstance(winner, str) and winner.space_hash != cell_of(suite, pair, label).hash:
            notes.append(f"{pair}/{label} was tuned for another space, recipe or method than the suite has now")
            continue
        if not isinstance(winner, str):
            winner = _usable(suite, winner)
        if isinstance(winner, str):
            warn(f"{path}: damaged ({winner}); left out, and `kdbench tune` writes it again")
            notes.append(f"{pair}/{label} has a damaged file of its winner")
            continue
        found[pair, label] = winner
    return found, notes


def _usable(suite: Suite, winner: Winner) -> Winner | str:
    """The winner, or why what it chose cannot be laid over the suite."""
    try:
        variant(suite, winner.pair, winner.method, winner.overrides)
    except UserError as error:
        return printable(error)
    return winner


# the tuned track -----------------------------------------------------------------------------------------------------
def tuned_jobs(
    suite: Suite,
    root: Path,
    fingerprint: str | None = None,
    *,
    epochs: int | None = None,
    seeds: Iterable[int] | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> list[Job]:
    """The jobs of `expand`, with the winners' knobs; cells without a winner are left out with a warning.

    Raises:
        UserError: no cell has a winner, or a winner does not fit the suite.
    """
    found, notes = current(suite, root, warn)
    if not found:
        raise UserError(f"{suite.path}: nothing of it has been tuned: run `kdbench tune {suite.path}` first")
    if notes:
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        warn(f"{notes[0]}{more}: not in this run; `kdbench tune {suite.path}` tunes it")
    return jobs_of(suite, found.values(), fingerprint, suite.file.seeds if seeds is None else seeds, epochs)


def jobs_of(
    suite: Suite, found: Iterable[Winner], fingerprint: str | None, seeds: Iterable[int], epochs: int | None = None
) -> list[Job]:
    """The winners' jobs, seed by seed."""
    first = [tuned_job(suite, winner, fingerprint, seed=0, epochs=epochs) for winner in found]
    return [replace(job, seed=seed, content={**job.content, "seed": seed}) for seed in seeds for job in first]


def tuned_job(suite: Suite, winner: Winner, fingerprint: str | None, *, seed: int, epochs: int | None = None) -> Job:
    job = variant(suite, winner.pair, winner.method, winner.overrides, fingerprint, seed=seed, epochs=epochs)
    return replace(job, track="tuned", trials=winner.trials, comparable=epochs is None)

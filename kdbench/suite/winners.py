"""What tuning found: `leaderboard/tuned/<suite>/<pair>/<method>.json`, and the jobs of the tuned track.

A file holds neither paths nor hosts nor times; the same trials give the same bytes. Needs neither torch nor Optuna.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdbench.errors import UserError
from kdbench.files import write_atomically
from kdbench.method import Method, Wrapper, knobs
from kdbench.suite.cell import cell_of, rises
from kdbench.suite.job import Job, variant
from kdbench.suite.load import Suite
from kdbench.tune.winner import expected_best


@dataclass(frozen=True)
class Winner:
    """The best configuration of one cell, and what finding it took."""

    suite: str
    pair: str
    method: str  # label in the suite
    space_hash: str
    overrides: dict[str, Any]  # dotted path -> value, laid over the suite's own; {} where that was the best
    knobs: dict[str, Any]  # every knob of the winning method, `over.` for what it wraps
    trials: int  # finished, of any verdict
    pruned: int
    failed: int  # diverged, refused or beyond the constraints included
    gpu_seconds: float  # of training, over all trials
    metric: str
    value: float
    values: list[float]  # of the trials that have one, by number
    default_value: float | None  # of the first trial, the suite's own configuration; None where it has none
    epochs: int
    seeds: list[int]
    sampler: str
    objectives: list[str]
    pareto: list[dict[str, Any]] | None = None  # {"overrides", "values"} where there are several objectives

    @property
    def expected_best(self) -> list[float]:
        """Of n of the trials, n = 1, 2, ..."""
        return expected_best(self.values, rising=rises(self.metric))

    def to_json(self) -> str:
        content = asdict(self)
        if self.pareto is None:
            del content["pareto"]
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Winner:
        """Raises ValueError: not such a file."""
        try:
            raw = json.loads(text)
            raw.pop("expected_best", None)  # stored by earlier versions, from another formula: it follows from `values`
            if extra := set(raw) - {f.name for f in fields(cls)}:
                raise ValueError(f"unknown fields {sorted(extra)}")
            return cls(**raw)
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(str(error)) from error


def knobs_of(method: Method, prefix: str = "") -> dict[str, Any]:
    found = {prefix + name: getattr(method, name) for name in knobs(method)}
    return found | (knobs_of(method.over, f"{prefix}over.") if isinstance(method, Wrapper) else {})


# files ---------------------------------------------------------------------------------------------------------------
def folder(root: Path, suite: str) -> Path:
    return root / "tuned" / suite


def path_of(root: Path, suite: str, pair: str, label: str) -> Path:
    return folder(root, suite) / pair / f"{label}.json"


def write(winner: Winner, root: Path) -> Path:
    """Raises UserError: the folder cannot be written."""
    path = path_of(root, winner.suite, winner.pair, winner.method)
    text = winner.to_json()
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text.encode())
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
    try:
        return Winner.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and `kdbench tune` writes it again") from error


def current(suite: Suite, root: Path) -> tuple[dict[tuple[str, str], Winner], list[str]]:
    """The winners that the suite as it is now asks for, by (pair, label), and a sentence for each cell without one."""
    found: dict[tuple[str, str], Winner] = {}
    notes: list[str] = []
    if suite.file.tune is None:
        return {}, []
    for pair, label in suite.cells:
        winner = read(root, suite.file.name, pair, label)
        if winner is None:
            notes.append(f"{pair}/{label} has not been tuned")
        elif winner.space_hash != cell_of(suite, pair, label).hash:
            notes.append(f"{pair}/{label} was tuned for another space, recipe or method than the suite has now")
        else:
            found[pair, label] = winner
    return found, notes


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
    found, notes = current(suite, root)
    if not found:
        raise UserError(f"{suite.path}: nothing of it has been tuned: run `kdbench tune {suite.path}` first")
    if notes:
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        warn(f"{notes[0]}{more}: not in this run; `kdbench tune {suite.path}` tunes it")
    chosen = tuple(suite.file.seeds if seeds is None else seeds)
    jobs = [
        tuned_job(suite, winner, fingerprint, seed=seed, epochs=epochs) for seed in chosen for winner in found.values()
    ]
    return jobs


def tuned_job(suite: Suite, winner: Winner, fingerprint: str | None, *, seed: int, epochs: int | None = None) -> Job:
    job = variant(suite, winner.pair, winner.method, winner.overrides, fingerprint, seed=seed, epochs=epochs)
    return replace(job, track="tuned", trials=winner.trials, comparable=epochs is None)

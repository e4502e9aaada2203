"""Results on disk: one JSON per job under `<root>/results/<suite>/`, written once and atomically."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdbench.errors import UserError
from kdbench.files import set_aside, write_atomically
from kdbench.result import Result
from kdbench.run import record_index
from kdbench.suite import winners
from kdbench.suite.job import Job, digest, expand
from kdbench.suite.load import Suite
from kdbench.suite.winners import Winner

FINAL = ("ok", "diverged", "pruned")  # a failed or skipped job is tried again by the next run


class Store:
    """All results of one suite. `warn` receives a sentence for each damaged file.

    Reading changes nothing on disk: a damaged file is left out, and set aside by who writes its job's result anew. Of
    very many results the curves are left out too (`record_index`); they are in the files.
    """

    def __init__(self, root: Path, suite: str, warn: Callable[[str], None] = lambda sentence: None) -> None:
        self.folder, self.warn = root / "results" / suite, warn
        self.results: dict[str, Result] = {}
        self.again: set[str] = set()  # keys of jobs in trouble that are to be done again, final or not
        self.damaged: set[str] = set()  # names of files that are left out
        with _no_search_for_cycles():
            found = sorted(names(self.folder))
            index = record_index.Index(self.folder) if len(found) >= record_index.MANY else None
            for name in found:
                self._read(self.folder / name, index)
            if index is not None:
                index.keep()

    @property
    def fingerprints(self) -> frozenset[str]:
        """Of the data that the results were made from."""
        told = (result.job.get("data", {}).get("fingerprint") for result in self.results.values())
        return frozenset(name for name in told if isinstance(name, str))

    def refresh(self, *keys: str) -> None:
        """Read anew what another run may have written of some jobs, under whatever label."""
        for name in sorted(names(self.folder)):
            if key_of(name) in keys:
                self._read(self.folder / name)

    def _read(self, path: Path, index: record_index.Index | None = None) -> None:
        try:
            result = read(path) if index is None else index.read(path, read)
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            if path.name not in self.damaged:
                reason = (error.strerror if isinstance(error, OSError) else None) or error
                self.warn(f"{path}: damaged result ({reason}); left out, the job counts as not done")
            self.damaged.add(path.name)
            return
        self.damaged.discard(path.name)
        if not (self.done(result.key) and result.status not in FINAL):
            self.results[result.key] = result

    def done(self, key: str) -> bool:
        return key in self.results and key not in self.again and self.results[key].status in FINAL

    def write(self, result: Result) -> Path:
        """Store a result. A final one is never replaced.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.folder / filename(result)
        if self.done(result.key):
            return path
        try:
            if path.name in self.damaged:
                self.warn(f"{path}: the damaged result is set aside as {set_aside(path).name}")
                self.damaged.discard(path.name)
            write_atomically(path, result.to_json().encode())
        except OSError as error:
            raise UserError(
                f"{path.parent}: cannot write results ({error.strerror}); free space or give --results DIR"
            ) from error
        self.results[result.key] = result
        self.again.discard(result.key)
        return path


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Records hold none, and Python's search among thousands takes a third of the time of reading them."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def read(path: Path) -> Result:
    """The result in a file.

    Raises:
        ValueError: it is damaged, or under a name that is not its own; the message is on one line.
        OSError: it cannot be read.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    result = Result.from_json(text)
    if digest(result.job) != result.key or path.name != filename(result):
        raise ValueError("its content does not match its key")
    return result


def names(folder: Path) -> list[str]:
    """The names of the result files in a folder, in any order; none where there is no folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries]
        return [name for name in found if name.endswith(".json") and not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot read results ({error.strerror}); give another --results DIR") from error


def key_of(name: str) -> str:
    """The job's key in the name of a result file."""
    return name.removesuffix(".json").rpartition(".")[2]


def filename(result: Result) -> str:
    return f"{result.pair}.{result.method}.s{result.seed}.{result.key}.json"


Cell = tuple[str, str]  # pair, label


def published(suite: Suite, store: Store) -> list[Result]:
    """The stored results of the default track, under the suite's labels; stale ones are left out."""
    return matching(lambda fingerprint: expand(suite, fingerprint), store)


def chosen(suite: Suite, store: Store, found: Mapping[Cell, Winner]) -> list[Result]:
    """The stored results of the tuned track: those of the winners that are in force now."""
    return matching(lambda fingerprint: winners.jobs_of(suite, found.values(), fingerprint, suite.file.seeds), store)


def matching(wanted: Callable[[str], Iterable[Job]], store: Store) -> list[Result]:
    """The stored results of some jobs, relabelled.

    The data set is not at hand: its fingerprint is one of those in the records. Where results of several versions of
    the data are stored, those of the most frequent one.

    Args:
        wanted: the jobs, given the fingerprint.
    """
    found: list[Result] = []
    for fingerprint in sorted(store.fingerprints):
        jobs = wanted(fingerprint)
        here = [relabelled(store.results[key], job) for job in jobs if (key := job.key) in store.results]
        found = max(found, here, key=len)
    return found


def relabelled(result: Result, job: Job) -> Result:
    """A stored result under the labels that the suite uses now; its content is the same."""
    labels: dict[str, Any] = {"suite": job.suite, "pair": job.pair, "method": job.label, "track": job.track}
    if result.cost and result.cost.trials != job.trials:
        labels["cost"] = dataclasses.replace(result.cost, trials=job.trials)
    changed = {name: value for name, value in labels.items() if getattr(result, name) != value}
    return dataclasses.replace(result, **changed) if changed else result

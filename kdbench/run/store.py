"""Results on disk: one JSON per job under `<root>/results/<suite>/`, written once and atomically."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kdbench.errors import UserError
from kdbench.files import set_aside, write_atomically
from kdbench.result import Result
from kdbench.suite import winners
from kdbench.suite.job import Job, digest, expand, matches
from kdbench.suite.load import Suite
from kdbench.suite.winners import Winner

FINAL = ("ok", "diverged", "pruned")  # a failed or skipped job is tried again by the next run


class Store:
    """All results of one suite. `warn` receives a sentence for each damaged file, which is set aside."""

    def __init__(self, root: Path, suite: str, warn: Callable[[str], None] = lambda sentence: None) -> None:
        self.folder, self.warn = root / "results" / suite, warn
        self.results: dict[str, Result] = {}
        self.again: set[str] = set()  # keys of jobs in trouble that are to be done anew, final or not
        self._read("*.json")

    def refresh(self, key: str) -> None:
        """Read anew what another run may have written of a job."""
        self._read(f"*.{key}.json")

    def _read(self, pattern: str) -> None:
        for path in sorted(self.folder.glob(pattern)):
            try:
                result = read(path)
            except FileNotFoundError:
                continue
            except (ValueError, UnicodeDecodeError) as error:
                self.warn(f"{path}: damaged result ({error}); {_put_away(path)}, the job will be done again")
                continue
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
            write_atomically(path, result.to_json().encode())
        except OSError as error:
            raise UserError(
                f"{path.parent}: cannot write results ({error.strerror}); free space or give --results DIR"
            ) from error
        self.results[result.key] = result
        self.again.discard(result.key)
        return path


def read(path: Path) -> Result:
    """The result in a file.

    Raises:
        ValueError: it is damaged, or under a name that is not its own.
    """
    result = Result.from_json(path.read_text(encoding="utf-8"))
    if digest(result.job) != result.key or path.name != filename(result):
        raise ValueError("its content does not match its key")
    return result


def filename(result: Result) -> str:
    return f"{result.pair}.{result.method}.s{result.seed}.{result.key}.json"


def _put_away(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f"set aside as {set_aside(path).name}"
    return "left where it is"


Cell = tuple[str, str]  # pair, label


def published(suite: Suite, store: Store) -> list[Result]:
    """The stored results of the default track, under the suite's labels; stale ones are left out."""
    return matching(expand(suite), store)


def chosen(suite: Suite, store: Store, found: Mapping[Cell, Winner]) -> list[Result]:
    """The stored results of the tuned track: those of the winners that are in force now."""
    jobs = [winners.tuned_job(suite, winner, None, seed=seed) for seed in suite.file.seeds for winner in found.values()]
    return matching(jobs, store)


def matching(wanted: Iterable[Job], store: Store) -> list[Result]:
    """The stored results of these jobs, relabelled.

    Where results of several versions of the data are stored, those of the most frequent one.
    """
    found: list[Result] = []
    by_cell: dict[tuple[str, int], list[Result]] = {}
    for result in store.results.values():
        by_cell.setdefault((result.job.get("method", {}).get("name", ""), result.seed), []).append(result)
    for job in wanted:
        for result in by_cell.get((job.content["method"]["name"], job.seed), ()):
            if matches(job, result.job):
                found.append(relabelled(result, job))
    prints = Counter(_fingerprint(result) for result in found)
    if len(prints) > 1:
        kept = min(prints, key=lambda name: (-prints[name], name))
        found = [result for result in found if _fingerprint(result) == kept]
    return found


def _fingerprint(result: Result) -> str:
    return str(result.job["data"]["fingerprint"])


def relabelled(result: Result, job: Job) -> Result:
    """A stored result under the labels that the suite uses now; its content is the same."""
    cost = dataclasses.replace(result.cost, trials=job.trials) if result.cost else None
    return dataclasses.replace(result, suite=job.suite, pair=job.pair, method=job.label, track=job.track, cost=cost)

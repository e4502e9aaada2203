"""What a run has come to: the results of its jobs, and which of them are new. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kdbench.result import Result
from kdbench.run.store import Store, relabelled
from kdbench.suite.job import Job


@dataclass
class Summary:
    """Results of this run's jobs in the order of the jobs, and the keys of those that it did now."""

    results: list[Result] = field(default_factory=list)
    new: frozenset[str] = frozenset()

    @property
    def trained(self) -> int:
        """How many were trained now; a job that failed, or was skipped, was not."""
        return len({r.key for r in self.results if r.key in self.new and r.status in ("ok", "diverged")})

    @property
    def reused(self) -> int:
        """How many were done before."""
        return len(self.results) - len({r.key for r in self.results if r.key in self.new})

    @property
    def troubled(self) -> list[Result]:
        return [result for result in self.results if result.status != "ok"]


def summary(jobs: Sequence[Job], store: Store, new: Iterable[str] = ()) -> Summary:
    results = [relabelled(store.results[job.key], job) for job in jobs if job.key in store.results]
    return Summary(results, frozenset(new))

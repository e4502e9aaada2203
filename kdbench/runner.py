"""Jobs -> results: what is done already, in which order the rest goes, and one job's failure never stops the others."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import UserError
from kdbench.files import write_atomically
from kdbench.job import Job
from kdbench.result import Result
from kdbench.store import Store
from kdbench.workbench import Workbench


@dataclass
class Listener:
    """What a run tells its watcher."""

    started: Callable[[Job], None] = lambda job: None
    finished: Callable[[Job, Result], None] = lambda job, result: None


@dataclass
class Summary:
    """Results of this run's jobs in the order of the jobs, and how many of them had to be trained."""

    results: list[Result] = field(default_factory=list)
    trained: int = 0

    @property
    def troubled(self) -> list[Result]:
        return [result for result in self.results if result.status != "ok"]


def run(jobs: Sequence[Job], bench: Workbench, store: Store, listener: Listener | None = None) -> Summary:
    """Do every job that has no final result yet.

    Raises:
        UserError: results cannot be written.
        KeyboardInterrupt: the user stopped; what is finished is stored, the running job has its checkpoint.
    """
    listener = listener or Listener()
    summary = Summary()
    for job in jobs:
        if store.done(job.key):
            summary.results.append(relabelled(store.results[job.key], job))
            continue
        listener.started(job)
        result = _attempt(job, bench)
        store.write(result)
        summary.results.append(result)
        summary.trained += 1
        listener.finished(job, result)
    return summary


def relabelled(result: Result, job: Job) -> Result:
    """A stored result under the labels that the suite uses now; its content is the same."""
    return dataclasses.replace(result, suite=job.suite, pair=job.pair, method=job.label)


def _attempt(job: Job, bench: Workbench) -> Result:
    try:
        return bench.perform(job)
    except (KeyboardInterrupt, UserError):
        raise
    except Exception as error:
        log = bench.runs / "logs" / f"{job.key}.txt"
        write_atomically(log, traceback.format_exc().encode())
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        return Result(
            key=job.key,
            suite=job.suite,
            pair=job.pair,
            method=job.label,
            seed=job.seed,
            status="failed",
            reason=f"{reason} (log: {Path('logs') / log.name})",
            comparable=job.comparable,
            job=dict(job.content),
        )

"""Jobs -> results, in this process: what is done already, in which order the rest goes, who else is at work.

One job's failure never stops the others. `crew` does the same with worker processes.
"""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import UserError
from kdbench.result import Result
from kdbench.run.log import Log, path_of
from kdbench.run.store import FINAL, Store
from kdbench.run.summary import Summary, summary
from kdbench.suite.job import FrozenRole, Job
from kdbench.train import checkpoint, memory
from kdbench.train.lease import Lease
from kdbench.train.state import Progress
from kdbench.train.workbench import Workbench

POLL = 1.0  # seconds between looks at jobs that another run holds
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Listener:
    """What a run tells its watcher."""

    started: Callable[[Job], None] = lambda job: None
    finished: Callable[[Job, Result], None] = lambda job, result: None
    epoch: Callable[[str, Progress], None] = lambda what, progress: None
    warn: Callable[[str], None] = lambda sentence: None


class Busy(Exception):
    """Another run holds the job, or took it over while this process slept."""


class Stopped(Exception):
    """Whoever watches a training ended it."""


class OutOfMemory(Exception):
    """The job does not fit beside its neighbours."""


def run(jobs: Sequence[Job], bench: Workbench, store: Store, listener: Listener | None = None) -> Summary:
    """Do every job that has no final result yet, one after the other; a job that another run holds is awaited.

    Raises:
        UserError: results cannot be written.
        KeyboardInterrupt: the user stopped; what is finished is stored, the running job has its checkpoint.
    """
    listener = listener or Listener()
    waiting = [job for job in jobs if not store.done(job.key)]
    broken = {role.key: reason for role in first_roles(waiting) if (reason := teach(role, bench))}
    new: set[str] = set()
    told = False
    while waiting:
        held: list[Job] = []
        for job in waiting:
            if store.done(job.key):  # under another label
                continue
            listener.started(job)
            if reason := broken_by(job, broken):
                result = failed(job, reason)
                store.write(result)
            else:
                try:
                    result, fresh = do(job, bench, store)
                except Busy:
                    held.append(job)
                    continue
                except OutOfMemory as error:
                    result, fresh = failed(job, str(error)), True
                    store.write(result)
                if not fresh:
                    continue
            new.add(job.key)
            listener.finished(job, result)
        waiting = held
        if held:
            if not told:
                listener.warn(f"{len(held)} jobs are being trained by another run; waiting for their results")
                told = True
            time.sleep(POLL)
            store.refresh(*(job.key for job in held))
    return summary(jobs, store, new)


# teachers ------------------------------------------------------------------------------------------------------------
def first_roles(jobs: Sequence[Job]) -> list[FrozenRole]:
    """The frozen roles that these jobs need, each once: they go first."""
    return list({role.key: role for job in jobs for role in job.frozen.values()}.values())


def teach(role: FrozenRole, bench: Workbench) -> str:
    """Get or train a frozen role; "" or why that failed."""
    log = Log(path_of(bench.runs, role.key))
    with hearing(bench, log, ()):
        try:
            bench.teacher(role)
        except Exception as error:
            return f"its teacher {role.model.model} failed: {_recorded(error, log, bench)}"
    return ""


def broken_by(job: Job, broken: dict[str, str]) -> str:
    return next((broken[role.key] for role in job.frozen.values() if role.key in broken), "")


# one job -------------------------------------------------------------------------------------------------------------
def do(job: Job, bench: Workbench, store: Store, splits: Sequence[str] = ("val", "test")) -> tuple[Result, bool]:
    """The job's result, stored, and whether it was trained now: another run may have finished it meanwhile.

    Raises:
        Busy: another run is training it.
        OutOfMemory, Stopped: nothing is stored.
        UserError: files cannot be written.
    """
    with ExitStack() as stack:
        # Both folders: either may be shared with a run that has another one.
        paths = {
            bench.runs / "leases" / job.key: "checkpoints ({}); free space or give --runs DIR",
            store.folder / ".leases" / job.key: "results ({}); free space or give --results DIR",
        }
        leases = [stack.enter_context(_held(path, job, trouble)) for path, trouble in paths.items()]
        store.refresh(job.key)
        if store.done(job.key):
            return store.results[job.key], False
        log = Log(path_of(bench.runs, job.key))
        log.say(f"{job.name} seed {job.seed} on {bench.device}")
        with hearing(bench, log, leases):
            result = _attempt(job, bench, log, splits)
        log.say(f"{result.status} {result.reason}".rstrip())
        store.write(result)
        if result.status in FINAL:  # and safe on disk: only now is the training let go
            checkpoint.path_of(bench.runs, job.key).unlink(missing_ok=True)
        return result, True


@contextmanager
def _held(path: Path, job: Job, trouble: str) -> Iterator[Lease]:
    try:
        lease = Lease.acquire(path, job.title)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot write {trouble.format(error.strerror)}") from error
    if lease is None:
        raise Busy(path.name)
    with lease:
        yield lease


@contextmanager
def hearing(bench: Workbench, log: Log, leases: Sequence[Lease]) -> Iterator[None]:
    """Meanwhile every epoch goes into the log as well, and stops a job that another run took over."""
    watch, warn = bench.watch, bench.warn

    def epoch(what: str, progress: Progress) -> None:
        log.epoch(what, progress)
        watch(what, progress)
        if any(lease.lost for lease in leases):
            raise Busy("this process slept, and another run took the job over")

    def sentence(text: str) -> None:
        log.say(f"warning: {text}")
        warn(text)

    bench.watch, bench.warn = epoch, sentence
    try:
        yield
    finally:
        bench.watch, bench.warn = watch, warn


def _attempt(job: Job, bench: Workbench, log: Log, splits: Sequence[str]) -> Result:
    try:
        return bench.perform(job, splits)
    except (Busy, Stopped):
        raise
    except Exception as error:
        if memory.out_of_memory(error):
            log.say(f"out of memory: {error}")
            raise OutOfMemory(f"out of memory on {bench.device}: {_first_line(error)}") from error
        return failed(job, f"{_recorded(error, log, bench)} (log: {Path('logs') / log.path.name})")


def _recorded(error: Exception, log: Log, bench: Workbench) -> str:
    """One line on an error, its traceback in the log. The user's own mistakes, a full disk too, stop the run."""
    if isinstance(error, UserError):
        raise error
    ours = isinstance(error, OSError) and str(error.filename or "").startswith(str(bench.runs))
    if isinstance(error, OSError) and (error.errno in FULL or (ours and isinstance(error, PermissionError))):
        raise UserError(
            f"{bench.runs}: cannot write ({error.strerror}); free space or give --runs DIR. "
            "The same command then continues"
        ) from error
    log.say("".join(traceback.format_exception(error)).rstrip())
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "no message"


def failed(job: Job, reason: str) -> Result:
    return job.result("failed", reason)

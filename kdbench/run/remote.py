"""The same work done elsewhere: by the machines of a cluster, which share the folders of results and runs.

An *executor* (`on_ray`, `on_slurm`) runs calls somewhere and tells how they ended. It keeps nothing that matters: the
store says what is done, leases who is at it, and what is missing is launched again. A call answers with the events of
the worker protocol (see `worker`).
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from kdbench.errors import UserError
from kdbench.run import worker
from kdbench.run.opened import Setting
from kdbench.run.roster import Assignment, Roster
from kdbench.run.summary import Summary
from kdbench.run.worker import Desk, Event
from kdbench.train import checkpoint
from kdbench.train.lease import Lease

LATE = 60.0  # seconds until a shared folder shows what another machine has written


class Call(Protocol):
    """Something to do elsewhere; it is sent there as a value. Its answer ends with the event that concludes it.

    `last`: there is no more memory to be had than it is given now.
    """

    @property
    def last(self) -> bool: ...
    def __call__(self) -> list[Event]: ...


@dataclass(frozen=True)
class Lost:
    """A call whose machine or process is gone, or that could not be made; and what is known of the reason."""

    cause: str


class Executor(AbstractContextManager["Executor"], Protocol):
    """Runs calls elsewhere, as long as it is entered."""

    @property
    def device(self) -> str:
        """On which calls train."""

    @property
    def crowded(self) -> bool:
        """Whether calls share a device, so that memory may be short for that reason."""

    def launch(self, calls: Sequence[Call]) -> Sequence[Hashable]:
        """Begin, or queue, calls; a handle for each."""

    def ended(self, handles: Collection[Hashable]) -> Mapping[Hashable, list[Event] | Lost]:
        """Those that have ended, after waiting for a moment."""

    def cancel(self, handles: Collection[Hashable]) -> None:
        """End them; every training goes on from its checkpoint later."""


@dataclass(frozen=True)
class Task:
    """One task of the worker protocol as a call. A process that makes several opens the suite once."""

    setting: Setting
    device: str
    kind: str
    key: str
    last: bool

    def __call__(self) -> list[Event]:
        said: list[Event] = []
        try:
            desk = _desk(self.setting, self.device)
            desk.bench.warn = lambda sentence: said.append((worker.WARN, sentence))
            return [*said, desk.do(self.kind, self.key, self.last)]
        except UserError as error:
            return [*said, (worker.STOP, *(f"{socket.gethostname()}: {line}" for line in error.args))]


@lru_cache(maxsize=1)
def _desk(setting: Setting, device: str) -> Desk:
    return Desk.open(setting, device)


def anywhere(setting: Setting) -> Setting:
    """The same for a process with another working directory, and another environment."""
    root = setting.data_root or os.environ.get("KDBENCH_DATA")
    return dataclasses.replace(
        setting,
        suite=setting.suite.absolute(),
        root=setting.root.absolute(),
        runs=setting.runs.absolute(),
        data_root=Path(root).absolute() if root else None,
    )


@dataclass
class Remote:
    """A roster and the executor that does it; at most `limit` calls at a time, if there is a limit."""

    roster: Roster
    setting: Setting
    executor: Executor
    limit: int | None = None

    def run(self) -> Summary:
        """Do all that waits.

        Raises:
            UserError: what a machine found wrong with the user's input or disk.
            KeyboardInterrupt: the user stopped; calls are cancelled, what is finished is stored.
        """
        self.setting = anywhere(self.setting)
        running: dict[Hashable, tuple[Assignment, int]] = {}
        with self.executor:
            try:
                while self.roster.waiting or running:
                    self._launch(running)
                    for handle, answer in self.executor.ended(running).items():
                        assignment, stamp = running.pop(handle)
                        self._hear(assignment, stamp, answer)
            finally:
                self.executor.cancel(running)
        return self.roster.summary()

    def _launch(self, running: dict[Hashable, tuple[Assignment, int]]) -> None:
        due: list[Assignment] = []
        while self.limit is None or len(running) + len(due) < self.limit:
            if (assignment := self.roster.take()) is None:
                break
            due.append(assignment)
        chosen = self._missing(due)
        handles = self.executor.launch([self._call(assignment) for assignment in chosen]) if chosen else []
        for assignment, handle in zip(chosen, handles, strict=True):
            running[handle] = assignment, self._stamp(assignment.key)
            if assignment.job:
                self.roster.listener.started(assignment.job)
        if not running:
            time.sleep(0.2)  # all that waits is being done by others

    def _missing(self, due: Sequence[Assignment]) -> list[Assignment]:
        """Those that nobody has done, or is doing."""
        roster = self.roster
        if due:
            roster.store.refresh(*(assignment.key for assignment in due))
        chosen: list[Assignment] = []
        for assignment in due:
            if assignment.job and roster.store.done(assignment.key):
                roster.done(assignment, trained=False)
            elif self._free(assignment.key):
                chosen.append(assignment)
            else:
                roster.held(assignment)
        return chosen

    def _call(self, assignment: Assignment) -> Task:
        last = assignment.cramped or not self.executor.crowded
        return Task(self.setting, self.executor.device, assignment.kind, assignment.key, last)

    def _free(self, key: str) -> bool:
        """Whether nobody is at it. Of all processes, this one watches the leases of silent owners the longest."""
        for folder in (self.setting.runs / "leases", self.roster.store.folder / ".leases"):
            if (folder / key).exists():
                if (lease := Lease.acquire(folder / key)) is None:
                    return False
                lease.release()
        return True

    def _stamp(self, key: str) -> int:
        """Changes with every epoch that is safe."""
        try:
            return checkpoint.path_of(self.setting.runs, key).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    # what is heard ---------------------------------------------------------------------------------------------------
    def _hear(self, assignment: Assignment, stamp: int, answer: list[Event] | Lost) -> None:
        roster = self.roster
        if isinstance(answer, Lost):
            roster.store.refresh(assignment.key)
            if assignment.job and roster.store.done(assignment.key):  # it died with its work done
                roster.done(assignment, trained=True)
                return
            if self._stamp(assignment.key) != stamp:
                assignment.deaths = 0
            roster.died(assignment, answer.cause)
            return
        for name, *arguments in answer:
            if name == worker.WARN:
                roster.listener.warn(str(arguments[0]))
            elif name == worker.STOP:
                raise UserError(*arguments)
            elif name == worker.TAUGHT:
                roster.taught(assignment, str(arguments[1]))
            elif name == worker.BUSY:
                roster.held(assignment)
            elif name == worker.MEMORY:
                roster.listener.warn(f"{assignment.name} ran out of memory; it is tried again with a device of its own")
                assignment.cramped = True
                roster.again(assignment)
            elif name == worker.DONE:
                self._await_record(assignment.key)
                roster.done(assignment, bool(arguments[1]))

    def _await_record(self, key: str) -> None:
        """Raises UserError where a machine has done a job and nothing of it can be seen here."""
        store, deadline = self.roster.store, time.monotonic() + LATE
        store.refresh(key)
        while key not in store.results:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{store.folder}: a machine has done the job {key}, and its result is not here: --results and "
                    f"--runs must be on a folder that all machines share (docs/many-machines.md)"
                )
            time.sleep(1.0)
            store.refresh(key)


def report_missing(where: Iterable[tuple[str, Sequence[str]]], who: str) -> None:
    """Raises UserError for machines that do not see some paths. `where`: machine, the paths that it lacks."""
    lines = [
        f"{machine}: does not see {', '.join(paths)}; {who} needs the suite, --results and --runs on a folder that all "
        "machines share. Where they share nothing: --teachers-only, --shard and merge (docs/many-machines.md)"
        for machine, paths in where
        if paths
    ]
    if lines:
        raise UserError(*lines)

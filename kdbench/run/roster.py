"""What is to be done, in which order, and what has come of it: the same whoever trains, here or elsewhere.

Frozen roles go first, then jobs seed by seed. A job whose teacher failed fails with the teacher's reason; one that
another run holds is tried again later.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.run import runner
from kdbench.run.runner import Listener
from kdbench.run.store import Store
from kdbench.run.summary import Summary, summary
from kdbench.suite.job import FrozenRole, Job

BACK_OFF = 2.0  # seconds before a job that another run holds is tried again
DEATHS = 3  # of workers on one job without an epoch in between, until it counts as failed


@dataclass(eq=False)
class Assignment:
    """A frozen role to make, or a job."""

    kind: str  # "teacher" | "job"
    key: str
    name: str
    job: Job | None = None
    needs: frozenset[str] = frozenset()  # keys of frozen roles that go first
    not_before: float = 0.0
    deaths: int = 0
    cramped: bool = False  # it ran out of memory beside others


@dataclass
class Roster:
    """The jobs without a final result, and the frozen roles that they lack; or `roles`, and nothing else."""

    jobs: Sequence[Job]
    store: Store
    runs: Path
    listener: Listener = field(default_factory=Listener)
    roles: Sequence[FrozenRole] | None = None

    def __post_init__(self) -> None:
        pending: list[Job] = []
        roles = self.roles
        if roles is None:
            pending = list({job.key: job for job in self.jobs if not self.store.done(job.key)}.values())
            roles = [role for role in runner.first_roles(pending) if not made(self.runs, role)]
        keys = {role.key for role in roles}
        self.waiting = [_teaching(role, keys) for role in roles] + [_training(job, keys) for job in pending]
        self.made: set[str] = set()
        self.broken: dict[str, str] = {}  # keys of frozen roles that could not be made -> why
        self.new: set[str] = set()  # keys of the jobs that were done now
        self.told = False

    def due(self, assignment: Assignment) -> bool:
        return assignment.not_before <= time.monotonic() and assignment.needs <= self.made | set(self.broken)

    def take(self) -> Assignment | None:
        """The first that is due, no longer waiting; one whose teacher failed is failed instead."""
        for assignment in [one for one in self.waiting if self.due(one)]:
            self.waiting.remove(assignment)
            if not (reason := next((self.broken[key] for key in assignment.needs if key in self.broken), "")):
                return assignment
            self.fail(assignment, reason)
        return None

    def again(self, assignment: Assignment) -> None:
        """It waits again, before all others."""
        self.waiting.insert(0, assignment)

    # what came of it -------------------------------------------------------------------------------------------------
    def taught(self, assignment: Assignment, trouble: str) -> None:
        self.made.add(assignment.key)
        if trouble:
            self.broken[assignment.key] = trouble

    def held(self, assignment: Assignment) -> None:
        """Another run has it: its result is awaited, behind all others."""
        assignment.not_before = time.monotonic() + BACK_OFF
        self.waiting.append(assignment)
        if not self.told:
            self.listener.warn(f"{assignment.name} is being trained by another run; its result is awaited")
            self.told = True

    def done(self, assignment: Assignment, trained: bool) -> None:
        assert assignment.job is not None
        self.store.refresh(assignment.key)
        self.new |= {assignment.key} if trained else set()
        self.listener.finished(assignment.job, self.store.results[assignment.key])

    def died(self, assignment: Assignment, cause: str) -> bool:
        """Whoever was at it is gone: it is tried again (true), or was too often."""
        assignment.deaths += 1
        if assignment.deaths >= DEATHS:
            self.fail(assignment, f"its worker died {DEATHS} times ({cause})")
            return False
        self.listener.warn(f"the worker of {assignment.name} died ({cause}); it is tried again")
        self.again(assignment)
        return True

    def fail(self, assignment: Assignment, reason: str) -> None:
        if assignment.job is None:
            inherited = assignment.needs & set(self.broken)
            self.taught(assignment, reason if inherited else f"its {assignment.name} failed: {reason}")
            return
        self.store.refresh(assignment.key)
        log = f" (log: logs/{assignment.key}.txt)" if not assignment.needs & set(self.broken) else ""
        self.store.write(runner.failed(assignment.job, reason + log))
        self.new.add(assignment.key)
        self.listener.finished(assignment.job, self.store.results[assignment.key])

    def summary(self) -> Summary:
        return summary(self.jobs, self.store, self.new)


def made(runs: Path, role: FrozenRole) -> bool:
    """Whether a frozen role is kept already; whether it is whole is seen when it is read."""
    return (runs / "teachers" / role.key / "record.json").exists()


def _teaching(role: FrozenRole, keys: set[str]) -> Assignment:
    needs = {role.source.key} & keys if role.source else set()
    return Assignment("teacher", role.key, f"teacher {role.model.model}", needs=frozenset(needs))


def _training(job: Job, keys: set[str]) -> Assignment:
    needs = frozenset(role.key for role in job.frozen.values()) & keys
    return Assignment("job", job.key, f"{job.name} seed {job.seed}", job, needs)

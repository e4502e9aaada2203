"""Who trains, as the command line asks for it: this process, workers of this machine, or an executor elsewhere.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.options import AUTO, hired, parse_duration
from kdbench.errors import UserError

if TYPE_CHECKING:
    from kdbench.run.crew import Crew
    from kdbench.run.machine import Staff
    from kdbench.run.opened import Setting
    from kdbench.run.remote import Executor, Remote
    from kdbench.run.runner import Listener
    from kdbench.run.store import Store
    from kdbench.suite.job import FrozenRole, Job


class Where(StrEnum):
    local = "local"
    ray = "ray"
    slurm = "slurm"


ExecutorOf = Annotated[
    Where, typer.Option("--executor", help="Who trains: processes here, a Ray cluster, or jobs of Slurm.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="auto or ray://HOST:PORT; else a Ray of this machine alone."),
]
GpusPerJob = Annotated[
    float | None,
    typer.Option("--gpus-per-job", min=0, help="With ray: share of a GPU for each job, such as 0.5; 0: CPUs."),
]
SlurmOptions = Annotated[
    str | None,
    typer.Option("--slurm", metavar="LIST", help="Options of sbatch: partition=gpu,time=4:00:00,gres=gpu:1."),
]


@dataclass(frozen=True)
class Elsewhere:
    """What the command line says of an executor."""

    where: Where = Where.local
    address: str | None = None
    gpus: float | None = None
    slurm: str | None = None

    def __post_init__(self) -> None:
        """Raises UserError where an option goes with another executor."""
        for option, value, other in (
            ("--ray-address", self.address, Where.ray),
            ("--gpus-per-job", self.gpus, Where.ray),
            ("--slurm", self.slurm, Where.slurm),
        ):
            if value is not None and self.where is not other:
                raise UserError(f"{option}: goes with --executor {other.value}")

    def executor(self, setting: Setting, device: str) -> Executor | None:
        """What does it, entered by nobody yet; None: this machine."""
        if self.where is Where.local:
            return None
        runs, root = setting.runs.absolute(), setting.root.absolute()
        for folder in (runs, root):
            folder.mkdir(parents=True, exist_ok=True)
        if self.where is Where.slurm:
            from kdbench.run.on_slurm import Slurm, parse

            return Slurm(runs / "slurm", parse(self.slurm), device)
        from kdbench.run.on_ray import Ray

        return Ray(self.address, self.gpus, device, (setting.suite.absolute(), root, runs))


@dataclass(frozen=True)
class Wanted:
    """Who shall train, before it is known how much there is to do."""

    device: str = "auto"
    workers: int = AUTO
    devices: str | None = None
    timeout: str | None = None
    elsewhere: Elsewhere = Elsewhere()

    def team(self, setting: Setting, pending: int) -> Team:
        """Raises UserError: no such device, or options that do not go together."""
        seconds = parse_duration(self.timeout) if self.timeout else None
        executor = self.elsewhere.executor(setting, self.device)
        if executor is None:
            return Team(hired(self.workers, self.device, self.devices, pending, apart=seconds is not None), seconds)
        for option, value in (("--devices", self.devices), ("--timeout", self.timeout)):
            if value is not None:
                raise UserError(f"{option}: goes with workers of this machine, not with --executor")
        limit = self.workers if self.workers > 0 else None
        return Team(None, None, executor, limit)


@dataclass(frozen=True)
class Team:
    """Who trains: `staff` of this machine, or an executor, `limit` calls at a time."""

    staff: Staff | None
    timeout: float | None = None
    executor: Executor | None = None
    limit: int | None = None

    @property
    def apart(self) -> bool:
        """Whether others than this process train."""
        return self.staff is None or self.staff.workers > 0

    @property
    def why(self) -> str:
        return self.staff.why if self.staff else ""

    def trainers(
        self,
        jobs: Sequence[Job],
        store: Store,
        setting: Setting,
        listener: Listener,
        roles: Sequence[FrozenRole] | None = None,
    ) -> Crew | Remote:
        """Those who do the jobs; or make `roles`, and nothing else."""
        if self.staff is not None:
            from kdbench.run.crew import Crew

            return Crew(jobs, store, setting, self.staff.workers, self.staff.devices, self.timeout, listener, roles)
        from kdbench.run.remote import Remote
        from kdbench.run.roster import Roster

        assert self.executor is not None
        return Remote(Roster(jobs, store, setting.runs, listener, roles), setting, self.executor, self.limit)

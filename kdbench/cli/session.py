"""One invocation of `run` or `plan`: the suite, its jobs, the workbench and the store, opened and checked together."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from kdbench.cli.options import emit, warn
from kdbench.cli.report import Report
from kdbench.models.make import Sizes
from kdbench.run import teaching
from kdbench.run.opened import Glance, Setting, try_models
from kdbench.run.progress import display
from kdbench.run.runner import Listener, run
from kdbench.run.saving import Saving, savings
from kdbench.run.store import Store
from kdbench.suite.fields import rung_role
from kdbench.suite.job import FrozenRole, Job
from kdbench.suite.load import Suite
from kdbench.train.workbench import Workbench

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.cli.team import Team


@dataclass
class Session:
    """Everything is validated when it opens: nothing trains on a suite with a mistake in it."""

    suite: Suite
    jobs: list[Job]
    bench: Workbench
    store: Store
    setting: Setting
    console: Console  # for progress and warnings (stderr)
    shapes: dict[tuple[str, str], tuple[int, int]]  # (pair, role) -> (parameters, MACs)

    @classmethod
    def open(cls, seen: Glance, device: str, console: Console) -> Session:
        """Raises UserError with all that is wrong with the suite, the options, the data or the models."""
        opened = seen.open(device)
        jobs, bench = opened.jobs, opened.bench
        shapes = try_models(jobs, Sizes(bench.data, opened.suite.folder))
        return cls(opened.suite, jobs, bench, opened.store, seen.setting, console, shapes)

    def plan(self, cost: bool) -> tuple[list[dict[str, object]], str]:
        """A row for each job, and a closing sentence."""
        pending = [job for job in self.jobs if not self.store.done(job.key)]
        seconds = {}
        if cost:
            from kdbench.run import estimate

            seconds = estimate.seconds(pending, self.bench, self.store.results.values())
        rows: list[dict[str, object]] = []
        for job in self.jobs:
            shapes = [self.shapes[job.pair, role] for role in job.plan.answer]
            rows.append(
                {
                    "key": job.key,
                    "pair": job.pair,
                    "method": job.label,
                    "seed": job.seed,
                    "roles": _roles(job),
                    "parameters": sum(parameters for parameters, _ in shapes),
                    "MACs": sum(macs for _, macs in shapes),
                    "state": self.store.results[job.key].status if self.store.done(job.key) else "pending",
                }
                | ({"seconds": round(seconds[job.key])} if job.key in seconds else {"seconds": "" if cost else "?"})
            )
        total = f"{len(self.jobs) - len(pending)} of {len(self.jobs)} jobs are done"
        if cost and pending:
            total += f"; the rest needs about {sum(seconds.values()) / 60:.1f} minutes here, teachers not counted"
        return rows, total

    def stored(self) -> list[Saving]:
        """What stored answers of teachers will save in the jobs that are to be done."""
        pending = [job for job in self.jobs if not self.store.done(job.key)]
        return (
            list(dict.fromkeys(savings(pending, self.bench.data, self.bench.room).values())) if self.bench.room else []
        )

    def sizes(self) -> list[dict[str, object]]:
        """A row for each role of each pair: its size, and its share of the teacher's; of a ladder, also summed up."""
        specs: dict[str, dict[str, str]] = {}
        for job in self.jobs:
            specs.setdefault(job.pair, {}).update({role: model.model for role, model in job.roles.items()})
        rows: list[dict[str, object]] = []
        for pair, used in specs.items():
            spec, whole = self.suite.file.pairs[pair], self.shapes[pair, "teacher"]
            rungs = {rung_role(index) for index in range(len(spec.ladder))}
            so_far = 0
            for role in dict.fromkeys([*(role for role in spec.roles if role in used), *used]):
                parameters, macs = self.shapes[pair, role]
                so_far += macs if role in rungs else 0
                rows.append(
                    {
                        "pair": pair,
                        "role": role,
                        "model": used[role],
                        "parameters": parameters,
                        "of teacher": _percent(parameters, whole[0]),
                        "MACs": macs,
                        "of teacher's": _percent(macs, whole[1]),
                        "so far": _percent(so_far, whole[1]) if role in rungs else "",
                    }
                )
        return rows

    def run(self, console: Console, as_json: bool, team: Team) -> int:
        """Do the jobs, in this process or by others, publish the board, print the tables; the exit code."""
        pending = [job for job in self.jobs if not self.store.done(job.key)]
        try:
            with self._watched(pending) as listener:
                if not team.apart:
                    summary = run(self.jobs, self.bench, self.store, listener)
                else:
                    summary = team.trainers(self.jobs, self.store, self.setting, listener).run()
        except KeyboardInterrupt:
            left = sum(not self.store.done(job.key) for job in self.jobs)
            self.console.print(
                f"stopped; {left} of {len(self.jobs)} jobs are left. The same command continues where this one stopped."
            )
            return 130
        return Report(self.suite, self.jobs, self.store, self.setting, summary).say(console, as_json)

    def teach(self, roles: Sequence[FrozenRole], as_json: bool, team: Team) -> int:
        """Make frozen roles and nothing else, say what there is now; the exit code, 1 if one may not teach."""
        runs = self.setting.runs
        before = teaching.kept(roles, runs)
        try:
            with self._watched([]) as listener:
                if not team.apart:
                    broken = teaching.make(roles, self.bench)
                else:
                    trainers = team.trainers(self.jobs, self.store, self.setting, listener, roles)
                    trainers.run()
                    broken = trainers.roster.broken
        except KeyboardInterrupt:
            self.console.print("stopped. The same command continues where this one stopped.")
            return 130
        rows, troubles = teaching.account(self.jobs, roles, self.bench.data.task, runs, before, broken)
        emit(rows, as_json)
        for sentence in troubles:
            warn(sentence)
        if not as_json:
            typer.echo(
                f"{len(roles)} teachers in {runs / 'teachers'}; on other machines: kdbench merge --teachers {runs}"
            )
        return 1 if troubles else 0

    @contextmanager
    def _watched(self, pending: Sequence[Job]) -> Iterator[Listener]:
        """Bars or lines meanwhile; batch systems and `kill` stop as Ctrl-C does."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with display(self.console, pending) as shown:
            self.bench.watch, self.bench.warn = shown.epoch, shown.warn
            yield Listener(shown.started, shown.finished, shown.epoch, shown.warn)


def _roles(job: Job) -> str:
    """`teacher=vgg13 weak1..weak3=mamba`: neighbours of one name and model in one."""
    groups: list[list[str]] = []
    for role, model in job.roles.items():
        stem = role.rstrip("0123456789")
        if groups and stem != role and groups[-1][0].rstrip("0123456789") == stem and groups[-1][-1] == model.model:
            groups[-1][1:-1] = [role]
        else:
            groups.append([role, model.model])
    return " ".join(f"{'..'.join(names)}={model}" for *names, model in groups)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g}%" if whole else ""

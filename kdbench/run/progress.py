"""How a run shows itself: live bars on a terminal, plain lines elsewhere. Both go to stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from kdbench.errors import printable
from kdbench.tasks import Metric

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from kdbench.result import Result
    from kdbench.suite.job import Job
    from kdbench.train.state import Progress

PLAIN_SECONDS = 30.0  # between lines about epochs of a long job


class Display(Protocol):
    """What the runner and the engine tell the person who watches."""

    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def started(self, job: Job) -> None: ...
    def epoch(self, what: str, progress: Progress) -> None: ...
    def finished(self, job: Job, result: Result) -> None: ...
    def warn(self, sentence: str) -> None: ...


def display(console: Console, pending: Sequence[Job]) -> Display:
    return Bars(console, pending) if console.is_terminal else Lines(console, pending)


def verdict(result: Result) -> str:
    """One phrase on a finished job."""
    if result.status != "ok" or result.cost is None:
        return f"{result.status}: {result.reason}"
    metric = Metric(**result.main)
    reached = result.scores.get(f"test/{metric.name}")
    said = "no test score" if reached is None else f"test {metric.shown(reached)}"
    return f"{said} in {result.cost.spent_seconds:.0f} s"


class Lines:
    """A line when a job ends, and now and then for a long one."""

    def __init__(self, console: Console, pending: Sequence[Job]) -> None:
        self.console, self.total, self.finished_jobs = console, len(pending), 0
        self.begun = self.spoken = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _line(self, text: str) -> None:
        self.spoken = time.monotonic()
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def started(self, job: Job) -> None:
        pass

    def epoch(self, what: str, progress: Progress) -> None:
        if time.monotonic() - self.spoken >= PLAIN_SECONDS:
            stage = f"stage {progress.stage + 1}/{progress.stages} " if progress.stages > 1 else ""
            self._line(
                f"[{self.finished_jobs}/{self.total}] {what}: "
                f"{stage}{progress.clock} {progress.epoch + 1}/{progress.epochs}, {progress.speed}{progress.reached}"
            )

    def finished(self, job: Job, result: Result) -> None:
        self.finished_jobs += 1
        rest = self.total - self.finished_jobs
        left = (time.monotonic() - self.begun) / self.finished_jobs * rest
        ahead = f", about {_duration(left)} left" if rest > 0 else ""
        self._line(f"[{self.finished_jobs}/{self.total}] {job.name} seed {job.seed}: {verdict(result)}{ahead}")

    def warn(self, sentence: str) -> None:
        self._line(f"warning: {sentence}")


class Bars:
    """Live bars: one for all jobs, and one for the epochs of each that is being trained."""

    def __init__(self, console: Console, pending: Sequence[Job]) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self.jobs: TaskID = self.bars.add_task("jobs", total=len(pending), note="")
        self.current: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def started(self, job: Job) -> None:
        self._bar(f"{job.name} seed {job.seed}")

    def epoch(self, what: str, progress: Progress) -> None:
        stage = f" stage {progress.stage + 1}/{progress.stages}" if progress.stages > 1 else ""
        self.bars.update(
            self._bar(what),
            description=printable(what + stage),
            total=progress.epochs,
            completed=progress.epoch + 1,
            note=f"{progress.speed}{progress.reached}",
        )
        if what.startswith("teacher ") and progress.epoch + 1 == progress.epochs:
            self._remove(what)  # of a job it is known when it has finished

    def finished(self, job: Job, result: Result) -> None:
        self._remove(f"{job.name} seed {job.seed}")
        self.bars.advance(self.jobs)
        self.bars.console.print(
            printable(f"{job.name} seed {job.seed}: {verdict(result)}"), markup=False, highlight=False, soft_wrap=True
        )

    def _bar(self, what: str) -> TaskID:
        if what not in self.current:
            self.current[what] = self.bars.add_task(printable(what), total=1, note="")
        return self.current[what]

    def _remove(self, what: str) -> None:
        if what in self.current:
            self.bars.remove_task(self.current.pop(what))

    def warn(self, sentence: str) -> None:
        self.bars.console.print(printable(f"warning: {sentence}"), markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

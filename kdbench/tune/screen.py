"""What `kdbench tune` shows while it works; in a worker, what it sends to be shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.text import Text

from kdbench.errors import printable
from kdbench.run.progress import PLAIN_SECONDS
from kdbench.suite.cell import Cell
from kdbench.train.state import Progress
from kdbench.tune.slots import Outcome
from kdbench.tune.tuner import Listener, Tuner

if TYPE_CHECKING:
    from rich.console import Console


class Screen:
    """A line for every finished trial; on a terminal also what is under way."""

    def __init__(self, console: Console, send: Callable[[str, bool], None] | None = None) -> None:
        self.console, self.send = console, send
        self.count = self.total = 0
        self.spoken = time.monotonic()
        self.status = console.status("") if send is None and console.is_terminal else None

    def listener(self) -> Listener:
        return Listener(epoch=self.epoch, finished=self.finished, warn=self.warn)

    def begin(self, tuner: Tuner) -> None:
        self.total = sum(tuner.limit(cell) for cell in tuner.cells)
        self.count = sum(slot.state == "done" for cell in tuner.cells for slot in tuner.studies[cell].table.values())
        if self.status:
            self.status.start()

    def end(self) -> None:
        if self.status:
            self.status.stop()

    def say(self, text: str, counts: bool = False) -> None:
        if self.send is not None:
            self.send(text, counts)
            return
        self.spoken = time.monotonic()
        if counts:
            self.count += 1
            text = f"[{self.count}/{max(self.total, self.count)}] {text}"
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def epoch(self, what: str, progress: Progress) -> None:
        text = f"{what}: {progress.clock} {progress.epoch + 1}/{progress.epochs}, {progress.speed}"
        if self.status:
            self.status.update(Text(printable(text)))
        elif time.monotonic() - self.spoken >= PLAIN_SECONDS:
            self.spoken = time.monotonic()
            self.say(text)

    def finished(self, cell: Cell, slot: int, of: int, outcome: Outcome) -> None:
        if outcome.verdict == "infeasible":
            return  # drawn anew
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(cell.objectives, outcome.values, strict=False))
        said = values or f"{outcome.verdict}: {outcome.reason}"
        seconds = sum(outcome.seconds.values())
        self.say(f"{cell.name} trial {slot + 1}/{of}: {said} ({seconds:.1f} s)", counts=True)

    def warn(self, sentence: str) -> None:
        self.say(f"warning: {sentence}")

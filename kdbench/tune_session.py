"""One invocation of `kdbench tune`: open everything, tune here or with workers, write the winners, say what came."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench import winners
from kdbench.errors import UserError
from kdbench.progress import PLAIN_SECONDS
from kdbench.setting import Setting
from kdbench.storages import connect
from kdbench.studies import row, table, title, winner_of
from kdbench.study import Outcome
from kdbench.suite import load
from kdbench.task import Progress
from kdbench.tuner import Listener, Tuner
from kdbench.tuning import Cell, tune_of
from kdbench.winners import Winner

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Order:
    """What `tune` is told on the command line; a plain value, so that it can be sent to workers."""

    setting: Setting
    url: str
    extra: int = 0  # trials beyond the suite's

    def open(self, device: str, listener: Listener) -> Tuner:
        """Raises UserError with all that is wrong with the suite, the options, the data, the models or the storage."""
        tune_of(load(self.setting.suite))  # before the data are read
        if self.extra and self.setting.only:
            raise UserError("--trials extends every method alike: leave --only away")
        opened = self.setting.open(device, listener.warn)
        tuner = Tuner(opened, connect(self.url), self.url, self.extra, listener)
        tuner.prepare()
        return tuner


def run(order: Order, device: str, workers: int, devices: tuple[str, ...], screen: Console, out: Console) -> int:
    """Tune until all is done; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems and `kill` stop as Ctrl-C does
    shown_ = Screen(screen)
    tuner = order.open(device if workers < 2 else "cpu", shown_.listener())
    shown_.begin(tuner)
    try:
        if not all(tuner.done(cell) for cell in tuner.cells):
            if workers < 2:
                tuner.work()
            else:
                from kdbench.tune_workers import Workers

                Workers(order, workers, devices, shown_).run()
    except KeyboardInterrupt:
        shown_.end()
        left = open_slots(tuner)
        screen.print(
            f"stopped; {left} trials are left. The same command continues where this one stopped.", highlight=False
        )
        return 130
    shown_.end()
    found = conclude(tuner, order.setting.root)
    report(tuner, found, order, out)
    return 0 if all(winner is not None for winner in found.values()) else 1


def open_slots(tuner: Tuner) -> int:
    left = 0
    for cell in tuner.cells:
        study = tuner.studies[cell]
        study.refresh()
        done = sum(slot.state == "done" for slot in study.table.values())
        left += max(0, tuner.limit(cell) - done)
    return left


def conclude(tuner: Tuner, root: Path) -> dict[Cell, Winner | None]:
    """Write the winner of every finished study."""
    found: dict[Cell, Winner | None] = {}
    for cell in tuner.cells:
        study = tuner.studies[cell]
        study.refresh()
        if tuner.done(cell):
            found[cell] = winner = winner_of(tuner.suite, cell, study, tuner.tune)
            if winner is not None:
                winners.write(winner, root)
    return found


# what is said --------------------------------------------------------------------------------------------------------
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
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def epoch(self, what: str, progress: Progress) -> None:
        text = f"{what}: epoch {progress.epoch + 1}/{progress.epochs}, {progress.images_per_second:.0f} images/s"
        if self.status:
            self.status.update(text)
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


def report(tuner: Tuner, found: dict[Cell, Winner | None], order: Order, out: Console) -> None:
    found_rows = [row(cell, tuner.studies[cell], tuner.limit(cell)) for cell in tuner.cells]
    table(found_rows, title(tuner.suite), out)
    for cell, winner in found.items():
        if winner is None:
            reason = next((slot.reason for slot in tuner.studies[cell].table.values() if slot.reason), "")
            out.print(f"{cell.name}: no trial came to a value: {reason}", markup=False, highlight=False)
    folder = winners.folder(order.setting.root, tuner.suite.file.name)
    said = f"Winners: {folder}. Next: kdbench run {order.setting.suite} --track tuned"
    out.print(said, markup=False, highlight=False, soft_wrap=True)

"""One invocation of `kdbench tune`: open everything, tune here or with workers, write the winners, say what came."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import printable
from kdbench.suite import winners
from kdbench.suite.cell import Cell
from kdbench.suite.winners import Winner
from kdbench.tune.best import winner_of
from kdbench.tune.crew import Workers
from kdbench.tune.elsewhere import RemoteWorkers
from kdbench.tune.order import Order
from kdbench.tune.screen import Screen
from kdbench.tune.status import row, table, title
from kdbench.tune.tuner import Tuner

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.run.remote import Executor


def run(
    order: Order,
    device: str,
    workers: int,
    devices: tuple[str, ...],
    screen: Console,
    out: Console,
    executor: Executor | None = None,
) -> int:
    """Tune until all is done, here, with workers, or `workers` at a time on an executor; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems and `kill` stop as Ctrl-C does
    shown_ = Screen(screen)
    here = executor is None and workers < 2
    tuner = order.open(device if here else "cpu", shown_.listener())
    shown_.begin(tuner)
    try:
        if not all(tuner.done(cell) for cell in tuner.cells):
            if here:
                tuner.work()
            elif executor is not None:
                RemoteWorkers(order, workers, executor, shown_, lambda: open_slots(tuner)).run()
            else:
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


def report(tuner: Tuner, found: dict[Cell, Winner | None], order: Order, out: Console) -> None:
    found_rows = [row(cell, tuner.studies[cell], tuner.limit(cell)) for cell in tuner.cells]
    table(found_rows, title(tuner.suite), out)
    for cell, winner in found.items():
        if winner is None:
            reason = next((slot.reason for slot in tuner.studies[cell].table.values() if slot.reason), "")
            out.print(printable(f"{cell.name}: no trial came to a value: {reason}"), markup=False, highlight=False)
    folder = winners.folder(order.setting.root, tuner.suite.file.name)
    said = f"Winners: {folder}. Next: kdbench run {order.setting.suite} --track tuned"
    out.print(said, markup=False, highlight=False, soft_wrap=True)

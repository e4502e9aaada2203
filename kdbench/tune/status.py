"""Where the studies of a suite stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UserError, printable
from kdbench.suite.cell import Cell, cell_of, objectives_of, tune_of
from kdbench.suite.load import Suite, load
from kdbench.tune.best import complete
from kdbench.tune.setup import study_of
from kdbench.tune.slots import seconds_of
from kdbench.tune.storage import connect, file_of, shown
from kdbench.tune.study import Study

if TYPE_CHECKING:
    from rich.console import Console


def table(found: Sequence[dict[str, object]], title: str, out: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    shown_ = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in found[0] if found else ():
        left = column in ("pair", "method", "state")
        shown_.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in found:
        shown_.add_row(*(Text("" if value is None else printable(value)) for value in row.values()))
    out.print(shown_)


def title(suite: Suite) -> str:
    tune = tune_of(suite)
    return f"{suite.file.name}: {', '.join(objectives_of(suite))}, sampler {tune.sampler}"


def row(cell: Cell, study: Study, limit: int) -> dict[str, object]:
    """One line of `--status`."""
    done = [slot for slot in study.table.values() if slot.state == "done"]
    values = [trial.values[0] for trial in complete(study)]
    first = study.table.get(0)
    default = first.trial.values[0] if first and first.verdict == "ok" and first.trial.values else None
    best = (max if cell.rising[0] else min)(values) if values else None
    running = sum(slot.state == "running" for slot in study.table.values())
    state = "done" if len(done) >= limit else f"{running} running" if running else "open"
    if not cell.space.entries:
        state += ", nothing to tune"
    elif cell.sampler == "grid":
        size = len(cell.enumerated or ())
        state += f", all {size} configurations" if limit >= size else ", grid"
    return {
        "pair": cell.pair,
        "method": cell.label,
        "trials": f"{len(done)}/{limit}",
        "pruned": sum(slot.verdict == "pruned" for slot in done),
        "failed": sum(slot.verdict not in ("ok", "pruned") for slot in done),
        "default": None if default is None else f"{default:.4g}",
        "best": None if best is None else f"{best:.4g}",
        "seconds": round(seconds_of(study.trials)),
        "state": state,
    }


def look(path: Path, url: str) -> tuple[Suite, dict[Cell, Study]]:
    """The suite's studies as they are, without data; those that were never begun are left out.

    Raises:
        UserError: there is no such storage, or it holds no study of the suite.
    """
    suite = load(path)
    tune = tune_of(suite)
    file = file_of(url)
    if file is not None and not file.exists():
        raise UserError(f"--storage {shown(url)}: there is nothing yet: run `kdbench tune {path}` first")
    storage = connect(url)
    cells = [cell_of(suite, pair, label) for pair, label in suite.cells]
    found = {cell: study_of(cell, tune, storage, None) for cell in cells}
    found = {cell: study for cell, study in found.items() if study.exists}
    if not found:
        raise UserError(
            f"--storage {shown(url)}: holds no study of {path} as it is now: run `kdbench tune {path}` first"
        )
    for study in found.values():
        study.look()
    return suite, found


def status(path: Path, url: str, as_json: bool, out: Console) -> None:
    suite, studies = look(path, url)
    tune = tune_of(suite)
    target = max(tune.trials, *(int(study.attribute("trials") or 0) for study in studies.values()))
    found = []
    for cell, study in studies.items():
        limit = cell.trials(target) if tune.budget == "trials" else max(1, len(study.table))
        found.append(row(cell, study, limit))
    if as_json:
        out.print_json(json.dumps([{"study": cell.study, **line} for cell, line in zip(studies, found, strict=True)]))
        return
    table(found, title(suite), out)
    missing = len(suite.cells) - len(studies)
    if missing:
        out.print(f"{missing} of {len(suite.cells)} cells have not been begun.", highlight=False)
    out.print(f"Storage: {shown(url)}", markup=False, highlight=False, soft_wrap=True)

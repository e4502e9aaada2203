"""The studies of a suite in one storage: opening them, and what they say; nothing is trained and torch stays away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from kdbench.errors import UserError
from kdbench.suite import winners
from kdbench.suite.cell import Cell, cell_of, rises, tune_of
from kdbench.suite.fields import Tune
from kdbench.suite.load import Suite, load
from kdbench.suite.winners import Winner
from kdbench.tune.storage import connect, file_of, reason, shown
from kdbench.tune.study import Study, seconds_of

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from rich.console import Console


def study_of(cell: Cell, tune: Tune, storage: BaseStorage, fingerprint: str | None) -> Study:
    attributes = {
        "suite": cell.suite,
        "pair": cell.pair,
        "method": cell.label,
        "objectives": list(cell.objectives),
        "seeds": list(tune.seeds),
        "fingerprint": fingerprint,
    }
    pruner = pruner_of(tune.pruner, cell.epochs)
    return Study(storage, cell.study, cell.directions, cell.space, cell.sampler, pruner, attributes, cell.enumerated)


def pruner_of(name: str, epochs: int) -> BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs)
    return optuna.pruners.NopPruner()


def agreed(studies: Sequence[Study], wanted: int) -> int:
    """The budget in trials of all studies: the largest that was ever asked of one of them."""
    stored = [int(study.storage.get_study_user_attrs(study.id).get("trials", 0)) for study in studies]
    target = max([wanted, *stored])
    for study, known in zip(studies, stored, strict=True):
        if known < target:
            study.storage.set_study_user_attr(study.id, "trials", target)
    return target


def away(url: str, error: BaseException) -> UserError:
    return UserError(f"--storage {shown(url)}: cannot be reached: {reason(error)}. The same command continues")


def complete(study: Study) -> list[optuna.trial.FrozenTrial]:
    """The finished trials that count, one for each slot, in the order of the slots."""
    found = (slot.trial for slot in study.table.values() if slot.state == "done" and slot.verdict == "ok")
    return [trial for trial in found if trial.state == TrialState.COMPLETE]


# what came out -------------------------------------------------------------------------------------------------------
def winner_of(suite: Suite, cell: Cell, study: Study, tune: Tune) -> Winner | None:
    """The best finished trial of a study as last read; None where no trial came to a value."""
    trials = complete(study)
    if not trials:
        return None
    rising = [rises(name) for name in cell.objectives]
    points = [trial.values for trial in trials]
    many = len(rising) > 1
    front = winners.pareto_front(points, rising) if many else range(len(points))
    sign = 1.0 if rising[0] else -1.0
    best = max(front, key=lambda i: (sign * points[i][0], -i))  # of equals the earlier: the suite's own is the first
    overrides = chosen(trials[best])
    done = [slot for slot in study.table.values() if slot.state == "done"]
    first = study.table.get(0)
    values = [trial.values[0] for trial in trials]
    return Winner(
        suite=cell.suite,
        pair=cell.pair,
        method=cell.label,
        space_hash=cell.hash,
        overrides=overrides,
        knobs=effective(cell, overrides),
        trials=len(done),
        pruned=sum(slot.verdict == "pruned" for slot in done),
        failed=sum(slot.verdict not in ("ok", "pruned") for slot in done),
        gpu_seconds=round(seconds_of(study.trials), 1),
        metric=cell.objectives[0],
        value=values[best],
        values=values,
        default_value=first.trial.values[0] if first and first.verdict == "ok" and first.trial.values else None,
        expected_best=[round(value, 6) for value in winners.expected_best(values, rising=rising[0])],
        epochs=cell.epochs,
        seeds=list(tune.seeds),
        sampler=cell.sampler,
        objectives=list(cell.objectives),
        pareto=[{"overrides": chosen(trials[i]), "values": list(points[i])} for i in front] if many else None,
    )


def chosen(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.user_attrs["overrides"])


def effective(cell: Cell, overrides: dict[str, Any]) -> dict[str, Any]:
    """The value of every searched field that counts under these overrides."""
    full = {**cell.space.defaults, **overrides}
    return {entry.key: full.get(entry.key) for entry in cell.space.entries if cell.space.active(entry, overrides)}


def table(found: Sequence[dict[str, object]], title: str, out: Console) -> None:
    from rich.table import Table

    shown_ = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in found[0] if found else ():
        left = column in ("pair", "method", "state")
        shown_.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in found:
        shown_.add_row(*("" if value is None else str(value) for value in row.values()))
    out.print(shown_)


def title(suite: Suite) -> str:
    tune = tune_of(suite)
    return f"{suite.file.name}: {', '.join(tune.objectives or (tune.metric,))}, sampler {tune.sampler}"


def row(cell: Cell, study: Study, limit: int) -> dict[str, object]:
    """One line of `--status`."""
    done = [slot for slot in study.table.values() if slot.state == "done"]
    values = [trial.values[0] for trial in complete(study)]
    first = study.table.get(0)
    default = first.trial.values[0] if first and first.verdict == "ok" and first.trial.values else None
    best = (max if rises(cell.objectives[0]) else min)(values) if values else None
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


# looking -------------------------------------------------------------------------------------------------------------
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

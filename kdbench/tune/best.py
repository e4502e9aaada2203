"""Trials of a study -> its winner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from kdbench.suite.cell import Cell
from kdbench.suite.fields import Tune
from kdbench.suite.load import Suite
from kdbench.suite.winners import Winner, pareto_front
from kdbench.tune.slots import seconds_of
from kdbench.tune.study import Study

if TYPE_CHECKING:
    pass


def complete(study: Study) -> list[optuna.trial.FrozenTrial]:
    """The finished trials that count, one for each slot, in the order of the slots."""
    found = (slot.trial for slot in study.table.values() if slot.state == "done" and slot.verdict == "ok")
    return [trial for trial in found if trial.state == TrialState.COMPLETE]


def winner_of(suite: Suite, cell: Cell, study: Study, tune: Tune) -> Winner | None:
    """The best finished trial of a study as last read; None where no trial came to a value."""
    trials = complete(study)
    if not trials:
        return None
    rising = cell.rising
    points = [trial.values for trial in trials]
    many = len(rising) > 1
    front = pareto_front(points, rising) if many else range(len(points))
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
        epochs=cell.epochs,
        seeds=list(tune.seeds),
        rising=rising[0],
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

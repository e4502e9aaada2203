"""The studies of a suite in one storage: opening them, and what they say; nothing is trained and torch stays away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna

from kdbench.errors import UserError
from kdbench.suite.cell import Cell
from kdbench.suite.fields import Tune
from kdbench.tune.storage import reason, shown
from kdbench.tune.study import Study

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage


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


# what came out -------------------------------------------------------------------------------------------------------


# looking -------------------------------------------------------------------------------------------------------------

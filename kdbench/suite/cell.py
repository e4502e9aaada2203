"""What `tune` does with one cell of a suite, before any storage is opened: its space, objectives, hash and budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdbench.errors import UserError
from kdbench.streams import derive
from kdbench.suite.fields import Tune
from kdbench.suite.job import digest, variant
from kdbench.suite.load import Suite
from kdbench.suite.search import Space, space_of
from kdbench.tasks import Task

MOST_SLOTS = 10_000


@dataclass(frozen=True, eq=False)
class Cell:
    """One (pair, method) and the study it gets."""

    suite: str
    pair: str
    label: str
    space: Space
    objectives: tuple[str, ...]
    sampler: str
    hash: str  # of all that a trial's value depends on, but for the data's fingerprint and the trial itself
    epochs: int  # of a trial
    rising: tuple[bool, ...]  # of the objectives: whether more is better
    enumerated: Sequence[Mapping[str, Any]] | None  # all configurations, where they are few or a grid is asked for

    @property
    def study(self) -> str:
        return f"{self.suite}/{self.pair}/{self.label}@{self.hash}"

    @property
    def name(self) -> str:
        return f"{self.pair}/{self.label}"

    @property
    def directions(self) -> tuple[Literal["minimize", "maximize"], ...]:
        return tuple("maximize" if rising else "minimize" for rising in self.rising)

    def trials(self, target: int) -> int:
        """The budget in trials: there are never more than configurations."""
        return target if self.enumerated is None else min(target, len(self.enumerated))


def rises(task: type[Task], name: str) -> bool:
    """Whether more of `val/<metric>` or of a cost is better; of every other cost than speed, less is."""
    metric = task.metric(name.removeprefix("val/")) if name.startswith("val/") else None
    return metric.better == "up" if metric else name == "images_per_second"


def objectives_of(suite: Suite) -> tuple[str, ...]:
    """What is optimised: several scores or costs, or the one `metric`, by default the task's headline.

    Raises:
        UserError: the suite has no `tune` block.
    """
    tune = tune_of(suite)
    return tune.objectives or (tune.metric or f"val/{suite.task.headline.name}",)


def tune_of(suite: Suite) -> Tune:
    """Raises UserError: the suite has no `tune` block."""
    if suite.file.tune is None:
        raise UserError(f"{suite.path}: has no `tune` block: add one, for example `tune: {{trials: 16}}`")
    return suite.file.tune


def cell_of(suite: Suite, pair: str, label: str) -> Cell:
    """Raises UserError: the suite has no `tune` block."""
    tune = tune_of(suite)
    space = space_of(suite, pair, label)
    job = variant(suite, pair, label, {})
    content = {name: value for name, value in job.content.items() if name != "seed"}
    objectives = objectives_of(suite)
    enumerated = space.configurations(derive(0, suite.file.name, pair, label), MOST_SLOTS)
    few = enumerated is not None and (tune.sampler == "grid" or len(enumerated) <= tune.trials)
    said = {
        "job": content,
        "space": space.content(),
        "objectives": list(objectives),
        "constraints": dict(tune.constraints),
        "seeds": list(tune.seeds),
        "epochs": tune.epochs,
        "sampler": tune.sampler,
        "pruner": tune.pruner,
    }
    return Cell(
        suite=suite.file.name,
        pair=pair,
        label=label,
        space=space,
        objectives=objectives,
        sampler="grid" if few else tune.sampler,
        hash=digest(said),
        epochs=tune.epochs or job.recipe.length,
        rising=tuple(rises(suite.task, name) for name in objectives),
        enumerated=enumerated if few else None,
    )


def parse_extra(text: str) -> int:
    """`+20` -> 20.

    Raises:
        UserError: anything else.
    """
    if not re.fullmatch(r"\+[1-9]\d*", text.strip()):
        raise UserError(f"--trials {text}: expects how many more than the suite's, such as +20")
    return int(text)

"""What stored answers of frozen roles will save: passes over the training set, and what they take on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.data import DataSet
from kdbench.data.augment import choices
from kdbench.suite.fields import Recipe
from kdbench.suite.job import Job
from kdbench.train import recall
from kdbench.train.frozen import exact
from kdbench.train.stage import length
from kdbench.train.table import bytes_of_row, shown


@dataclass(frozen=True)
class Saving:
    """Of one frozen role, over all jobs that ask it about the same views in batches of one size."""

    pair: str  # of the first such job
    role: str
    model: str
    views: int  # of each example
    bytes: int
    live: float  # passes over the training set if it ran on every batch
    stored: float  # expected passes until no view is asked for that is not stored
    fits: bool

    @property
    def share(self) -> float:
        """Of its forward passes, those that are left."""
        return self.stored / self.live if self.fits else 1.0

    def __str__(self) -> str:
        said = f"{self.pair}: answers of the {self.role} {self.model} on {self.views} views take {shown(self.bytes)}"
        if not self.fits:
            return f"{said}, more than --cache-gb leaves: it runs on every batch"
        return f"{said}: about {self.stored:,.0f} passes over the training set instead of {self.live:,.0f}"


def savings(jobs: Sequence[Job], data: DataSet, room: int) -> dict[tuple[str, str], Saving]:
    """By (key of a job, role), for the frozen roles of these jobs whose answers can be stored.

    With V views of an example, D independent draws of one ask for V (1 - (1 - 1/V)^D) different ones. Methods draw the
    same views where they share the seed, so that D counts seeds and epochs alone. What is stored already is not known
    here.
    """
    groups: dict[tuple[str, ...], list[tuple[Job, str, dict[tuple[int, int, int], float]]]] = {}
    for job in jobs:
        for role, frozen in job.frozen.items():
            draws = _draws(job, role, len(data.train))
            if draws and job.roles[role].answers is None and not exact(job.method, job.recipe):
                recipe = job.recipe
                alike = (frozen.key, str(recipe.augment), str(recipe.batch_size), recipe.precision, str(recipe.compile))
                groups.setdefault(alike, []).append((job, role, draws))
    found: dict[tuple[str, str], Saving] = {}
    left = room
    for members in groups.values():
        job, role, _ = members[0]
        views = choices(job.recipe.augment) or 1
        size = len(data.train) * views * bytes_of_row(data.classes)
        different = {draw: share for *_, draws in members for draw, share in draws.items()}
        live = sum(sum(draws.values()) for *_, draws in members)
        stored = min(live, views * (1 - (1 - 1 / views) ** sum(different.values())))
        made = Saving(job.pair, role, job.roles[role].model, views, size, live, stored, size <= left)
        left -= size if made.fits else 0
        found |= {(member.key, asked): made for member, asked, _ in members}
    return found


def _draws(job: Job, role: str, examples: int) -> dict[tuple[int, int, int], float]:
    """(seed, epoch, view) of each pass over the training set that the role would make, and how much of it."""
    recipe: Recipe = job.recipe
    if recall.views(job.method, recipe) is None:
        return {}
    first = 0
    draws: dict[tuple[int, int, int], float] = {}
    for stage in job.plan.stages:
        whole = length(recipe, stage.share, examples)
        if any(role in teachers for teachers in stage.learners.values()):
            for epoch in range(whole.epochs):
                share = min(1.0, whole.steps / whole.per_epoch - epoch)
                draws |= {(job.seed, first + epoch, view): share for view in range(job.method.needs().views)}
        first += whole.epochs
    return draws

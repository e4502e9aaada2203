"""Shares of a suite's jobs, for machines that do not know of each other. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kdbench.errors import UserError, shown

if TYPE_CHECKING:
    from kdbench.suite.job import FrozenRole, Job

T = TypeVar("T")
MOST = 100_000


@dataclass(frozen=True)
class Shard:
    """Share `number` of `of`, counted from 0. What it holds depends on the suite alone, not on what is done already.

    The seeds of a cell are dealt out in turn, the cells that need most first: two shares differ by at most one job of
    a cell, and what is one job under two labels stays together.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str | None) -> Shard | None:
        """`0/4` to `3/4`.

        Raises:
            UserError: not such a share.
        """
        if text is None:
            return None
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if not found or not 0 < int(found[2]) <= MOST or int(found[1]) >= int(found[2]):
            raise UserError(
                f"--shard {shown(text, 200)}: expects a share and how many there are, counted from 0: "
                f"0/4, 1/4, 2/4 and 3/4 are all of it"
            )
        return cls(int(found[1]), int(found[2]))

    def jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """Of a list of jobs those of this share, in the same order."""
        costs: dict[tuple[str, str], float] = {}
        for job in jobs:
            costs.setdefault((job.pair, job.label), _cost(job))
        ranked = sorted(jobs, key=lambda job: (-costs[job.pair, job.label], job.pair, job.label))  # stable: by seed
        mine = self._dealt(job.key for job in ranked)
        return [job for job in jobs if job.key in mine]

    def roles(self, roles: Sequence[FrozenRole]) -> list[FrozenRole]:
        """Of a list of frozen roles those of this share; one that starts from another goes with it."""
        ranked = sorted(roles, key=lambda role: -(role.recipe.length if role.recipe else 0))
        mine = self._dealt(_origin(role) for role in ranked)
        return [role for role in roles if _origin(role) in mine]

    def _dealt(self, things: Iterable[T]) -> set[T]:
        distinct: list[Hashable] = list(dict.fromkeys(things))
        return set(distinct[self.number :: self.of])  # type: ignore[arg-type]


def _origin(role: FrozenRole) -> str:
    return role.key if role.source is None else role.source.key


def _cost(job: Job) -> float:
    """Forward passes: a backward pass is two. What a pass costs is not known without the models."""
    passes = sum(
        stage.share * (3 * len(stage.learners) + len({t for ts in stage.learners.values() for t in ts}))
        for stage in job.plan.stages
    )
    return passes * job.recipe.length

"""What a frozen role says of a training batch: computed on its pixels, or looked up where that is exact.

A role that teaches without learning is a function of the pixels alone. Without augmentation an example has the same
pixels in every epoch, so its logits can be computed once for the whole training split (recipe: `teacher_logits`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdbench.batch import Batch, Out
from kdbench.method import Method, changes
from kdbench.models.taps import Tapped
from kdbench.suite.fields import Augment, Recipe


def exact(method: Method, recipe: Recipe) -> bool:
    """Whether stored logits are asked for and are what the frozen roles of this job would say anyway.

    No augmentation, no `batch` of the method's own in the whole chain, one view, no features of the teachers.
    """
    needs = method.needs()
    return (
        recipe.teacher_logits == "stored"
        and recipe.augment == Augment()
        and needs.views == 1
        and not needs.teacher
        and not changes(method, "batch")
    )


@dataclass(frozen=True)
class Live:
    """A frozen role that runs on every batch."""

    tapped: Tapped

    def __call__(self, batch: Batch) -> Out:
        with torch.no_grad():
            return say(self.tapped, batch)

    def close(self) -> None:
        self.tapped.close()


@dataclass(frozen=True)
class Stored:
    """A frozen role whose answers on the training split (N, ...) are looked up."""

    role: str
    answers: Tensor

    def __call__(self, batch: Batch) -> Out:
        return Out(self.role, batch.task.rows(self.answers.index_select(0, batch.index_B), batch))

    def close(self) -> None:
        """There is nothing to let go of."""


def say(tapped: Tapped, batch: Batch) -> Out:
    """One role's answer on a batch and its further views; logits in float32, whatever autocast made of them."""
    outs = [tapped(x) for x in (batch.x, *batch.views)]
    first, *views = (replace(out, rows=batch.task.rows(out.rows.float(), batch)) for out in outs)
    return replace(first, views=tuple(views))

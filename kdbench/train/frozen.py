"""What a frozen role says of a training batch: computed on its pixels, or looked up where that is exact.

A role that teaches without learning is a function of the pixels alone. Without augmentation an example has the same
pixels in every epoch, so its logits can be computed once for the whole training split (recipe: `teacher_logits`); with
crop and flip, see `kdbench.train.recall`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kdbench.batch import Batch, Out
from kdbench.method import Method, Refusal, changes
from kdbench.models.taps import Tapped
from kdbench.streams import seeded
from kdbench.suite.fields import Augment, Recipe
from kdbench.train.clock import Seconds


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
        and not needs.draws
        and not changes(method, "batch")
    )


def check_box(role: str, method: Method, recipe: Recipe) -> None:
    """Raises Refusal where a method asks more of a role than a file of answers holds."""
    needs, name = method.needs(), type(method).__name__
    asked = {
        f"its features ({', '.join(needs.teacher)})": bool(needs.teacher),
        "draws of it": needs.draws > 0,
        "surveys of it": any(survey.role == role for survey in needs.survey),
        "answers on several views": needs.views > 1,
        "answers on images that it changes": changes(method, "batch") or changes(method, "choose"),
        "answers on images that the recipe mixes": recipe.augment.cutmix is not None,
    }
    if what := next((what for what, wanted in asked.items() if wanted), None):
        raise Refusal(f"{name} needs {what}, but the {role} is a file of answers to the training examples as they are")


class Voice:
    """A frozen role, as a step hears it."""

    def __call__(self, batch: Batch) -> Out:
        """What it says of a batch and of its further views."""
        raise NotImplementedError

    def ready(self, batches: Sequence[Tensor], first: int, key: tuple[int, int], stop: Callable[[], bool]) -> bool:
        """Whether the next steps may begin: on these batches of the epoch `key[1]`, of which `first` is the first.

        What is made for them beforehand is made now, unless `stop` asks to end.
        """
        return True

    def settle(self) -> tuple[Seconds, Seconds]:
        """Since last asked: the time that its forward passes would have taken but for what was stored, and the time
        that was spent on storing and finding that instead.
        """
        return Seconds(), Seconds()

    def close(self) -> None:
        """Let go of what it holds."""


@dataclass(frozen=True)
class Live(Voice):
    """A frozen role that runs on every batch."""

    tapped: Tapped
    draws: int = 0
    seed: int = 0

    def __call__(self, batch: Batch) -> Out:
        with torch.no_grad():
            out = say(self.tapped, batch)
            return replace(out, draws=self._drawn(batch)) if self.draws else out

    def _drawn(self, batch: Batch) -> Tensor:
        """Answers (draws, R, C) with dropout on: a function of the seed, the epoch and the batch's number in it."""
        dropping = dropout_of(self.tapped.model, self.tapped.role)
        for module in dropping:
            module.train()
        with seeded(self.seed, "draws", self.tapped.role, batch.stage, batch.epoch, batch.number):
            drawn = [batch.task.rows(self.tapped(batch.x).rows.float(), batch) for _ in range(self.draws)]
        for module in dropping:
            module.eval()
        return torch.stack(drawn)

    def close(self) -> None:
        self.tapped.close()


@dataclass(frozen=True)
class Stored(Voice):
    """A frozen role whose answers on the training split (N, ...) are looked up."""

    role: str
    answers: Tensor

    def __call__(self, batch: Batch) -> Out:
        # Of one view: see `exact`, `check_box`.
        return Out(self.role, batch.task.rows(self.answers.index_select(0, batch.index_B), batch))


def dropout_of(model: nn.Module, role: str) -> list[nn.Module]:
    """The layers of a model that drop something: torch's dropout, and whole paths (timm's `DropPath`).

    Raises:
        Refusal: it has none, so that all its answers are one.
    """
    found: list[nn.Module] = []
    for module in model.modules():
        rate = getattr(module, "p", getattr(module, "drop_prob", 0))
        if isinstance(module, _DropoutNd) or type(module).__name__ == "DropPath":
            found += [module] if rate else []
    if not found:
        raise Refusal(f"the {role} has no dropout: all its draws would be the same; give its model a rate of dropout")
    return found


def say(tapped: Tapped, batch: Batch) -> Out:
    """One role's answer on a batch and its further views; logits in float32, whatever autocast made of them."""
    outs = [tapped(x) for x in (batch.x, *batch.views)]
    first, *views = (replace(out, rows=batch.task.rows(out.rows.float(), batch)) for out in outs)
    return replace(first, views=tuple(views))

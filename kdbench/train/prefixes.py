"""What an answer of several roles is worth if one stops early: every prefix of it, and exits by confidence.

Batches of what each role says go in, records come out; no split's answers are kept. Role k costs what it costs alone;
whoever asks the first k pays for all k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kdbench.method import Refusal
from kdbench.result import Exit, Prefix
from kdbench.targets import Targets
from kdbench.tasks import Scorer, Task

# Of the largest class probability: a fixed grid, so that nothing is chosen on the test split. Whoever deploys chooses
# the threshold by validation; the test scores stand beside it.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999)


def ladder(answers: Sequence[Tensor], task: Task, combine: Literal["sum", "mean"]) -> list[Tensor]:
    """The answer of the first role, of the first two, ..., of all: one each, of the shape of a role's."""
    return [task.combined(answers[: k + 1], combine) for k in range(len(answers))]


def leaving(sure_KR: Tensor, threshold: float) -> Tensor:
    """The prefix (0: the first role alone) at which each row leaves by its confidence, int64 (R,); all at the last."""
    enough_KR = sure_KR >= threshold
    enough_KR[-1] = True
    return enough_KR.int().argmax(0)  # the first that is sure: argmax takes the first of equals


@dataclass
class Steps:
    """Scores of every prefix, of every role alone, and of every exit, of one split."""

    task: Task
    roles: int
    combine: Literal["sum", "mean"]
    thresholds: Sequence[float] = THRESHOLDS
    together: list[Scorer] = field(default_factory=list)
    alone: list[Scorer] = field(default_factory=list)
    exits: list[Scorer] = field(default_factory=list)
    finite: bool = True  # all answers so far, of every role
    left: list[Tensor] = field(default_factory=list)  # (K,) rows that leave at each prefix, for each threshold

    def __post_init__(self) -> None:
        self.together, self.alone = ([self.task.scorer() for _ in range(self.roles)] for _ in range(2))

    def add(self, answers: Sequence[Tensor], targets: Targets, teacher_rows: Tensor | None) -> None:
        """A batch: what each role says alone, in the order of the answer."""
        self.finite = self.finite and all(bool(answer.isfinite().all()) for answer in answers)
        rows = [self.task.rows(answer) for answer in ladder(answers, self.task, self.combine)]
        for k, (own, whole) in enumerate(zip(answers, rows, strict=True)):
            self.alone[k].add(self.task.rows(own), targets, teacher_rows)
            self.together[k].add(whole, targets, teacher_rows)
        try:
            sure_KR = torch.stack([self.task.confidence(each) for each in rows])
        except Refusal:
            return  # this task has no early exits
        if not self.exits:
            self.exits = [self.task.scorer() for _ in self.thresholds]
            self.left = [torch.zeros(self.roles, dtype=torch.int64, device=sure_KR.device) for _ in self.thresholds]
        rows_KRC = torch.stack(rows)
        for number, threshold in enumerate(self.thresholds):
            at_R = leaving(sure_KR, threshold)
            chosen = rows_KRC[at_R, torch.arange(len(at_R), device=at_R.device)]
            self.exits[number].add(chosen, targets)
            self.left[number] += torch.bincount(at_R, minlength=self.roles)


def prefixes(roles: Sequence[str], sizes: Sequence[tuple[int, int]], found: Mapping[str, Steps]) -> list[Prefix]:
    """One record for each prefix of an answer.

    Args:
        roles: of the answer, in order.
        sizes: (parameters, MACs of one example) of each role alone.
        found: by split.
    """

    def scores(of: Mapping[str, Scorer]) -> dict[str, float]:
        return {f"{split}/{name}": value for split, scorer in of.items() for name, value in scorer.scores().items()}

    return [
        Prefix(
            role=role,
            scores=scores({split: steps.together[k] for split, steps in found.items()}),
            alone=scores({split: steps.alone[k] for split, steps in found.items()}),
            parameters=sum(parameters for parameters, _ in sizes[: k + 1]),
            macs=sum(macs for _, macs in sizes[: k + 1]),
        )
        for k, role in enumerate(roles)
    ]


def exits(macs: Sequence[int], found: Mapping[str, Steps]) -> list[Exit]:
    """Early exit by confidence: the headline and expected MACs on `val` and `test` at each threshold, rising.

    An example goes on to the next role while it is less sure than the threshold. None where the task has no measure
    of confidence.

    Args:
        macs: of one example, of each role alone.
        found: of splits `val` and `test`.
    """
    test, name = found["test"], found["test"].task.headline.name
    cumulative_K = torch.tensor(macs, dtype=torch.float64).cumsum(0)
    out = []
    for number, threshold in enumerate(test.thresholds if test.exits else ()):
        scores, costs = {}, {}
        for split, steps in found.items():
            scores[f"{split}/{name}"] = steps.exits[number].scores()[name]
            left_K = steps.left[number].double().cpu()
            costs[split] = ((cumulative_K * left_K).sum() / left_K.sum()).item()
        share_K = test.left[number].double() / test.left[number].sum()
        out.append(Exit(threshold, scores, costs, share_K.tolist()))
    return out

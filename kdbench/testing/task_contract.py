"""What every task promises, as tests to inherit.

class TestMine(kdbench.testing.TaskContract):
    task = Mine(outputs=10)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kdbench.method import Refusal
from kdbench.targets import Targets
from kdbench.tasks import Task
from kdbench.testing import problem
from kdbench.testing.contract import Contract, explained

COUNT = 24


class TaskContract(Contract):
    """The contract of tasks: `task = Mine(10)`, or `cases`. Override `labels` and `answers` where yours differ."""

    subject = "task"
    task: ClassVar[Task]

    @classmethod
    def unfit(cls, value: Any) -> str:
        return "" if isinstance(value, Task) else f"{value!r} is no task: give a value of a kdbench.Task"

    # what a data set and a model of this task say --------------------------------------------------------------------
    def labels(self, task: Task, count: int) -> Tensor:
        """Labels as a data set stores them: classes (count,), or numbers (count, outputs)."""
        return problem.labels(task, count, torch.Generator().manual_seed(1))

    def answers(self, task: Task, count: int) -> Tensor:
        """What a model answers before it has learnt anything."""
        return torch.randn(count, task.outputs, generator=torch.Generator().manual_seed(2))

    def right(self, task: Task, targets: Targets) -> Tensor:
        """Rows that are right."""
        return 20 * targets.dense() if task.kind == "categorical" else targets.dense(torch.float32)

    def given(self, task: Task, count: int = COUNT) -> tuple[Tensor, Targets]:
        """Rows, and their targets."""
        return task.rows(self.answers(task, count)), task.targets(self.labels(task, count))

    # declarations ----------------------------------------------------------------------------------------------------
    def test_it_is_a_frozen_hashable_value(self, task: Task) -> None:
        assert dataclasses.replace(task) == task
        assert hash(dataclasses.replace(task)) == hash(task)
        with pytest.raises(dataclasses.FrozenInstanceError):
            task.outputs = 1  # type: ignore[misc]

    def test_its_metrics_are_consistent(self, task: Task) -> None:
        assert task.kind in ("categorical", "real")
        assert task.headline in task.metrics
        names = [metric.name for metric in task.metrics]
        assert len(set(names)) == len(names)
        for metric in task.metrics:
            assert metric.better in ("up", "down")
            assert metric.digits >= 0
            assert metric.gap >= 0
            assert metric.bounds[0] < metric.bounds[1]

    # targets and loss ------------------------------------------------------------------------------------------------
    def test_targets_are_compact(self, task: Task) -> None:
        rows, targets = self.given(task)
        assert rows.shape == (len(targets.values), task.outputs)
        if task.kind == "categorical":
            assert targets.classes == task.outputs
            assert targets.values.dtype == torch.int64
            assert targets.hard
            torch.testing.assert_close(targets.dense().sum(1), torch.ones(len(rows)))
        else:
            assert targets.classes == 0
            assert targets.dense().shape == rows.shape

    def test_supervised_terms_are_means_over_rows(self, task: Task) -> None:
        rows, targets = self.given(task)
        terms = task.supervised(rows.requires_grad_(True), targets)
        answers, labels = self.answers(task, COUNT), self.labels(task, COUNT)
        twice = task.supervised(task.rows(torch.cat([answers, answers])), task.targets(torch.cat([labels, labels])))
        assert terms
        assert terms.keys() == twice.keys()
        for name, value in terms.items():
            assert value.shape == ()
            assert value.isfinite()
            assert value.requires_grad
            assert value.item() == pytest.approx(twice[name].item(), rel=1e-5)
        torch.stack(list(terms.values())).sum().backward()
        assert rows.grad is not None
        assert rows.grad.isfinite().all()

    def test_supervised_terms_are_the_same_in_float64(self, task: Task) -> None:
        rows, targets = self.given(task)
        narrow, wide = (task.supervised(given, targets) for given in (rows, rows.double()))
        for name, value in wide.items():
            assert value.dtype == torch.float64
            assert value.item() == pytest.approx(narrow[name].item(), rel=1e-4)

    def test_right_rows_cost_less_and_gradients_lead_there(self, task: Task) -> None:
        rows, targets = self.given(task)

        def cost(given: Tensor) -> Tensor:
            return torch.stack(list(task.supervised(given, targets).values())).sum()

        (slope,) = torch.autograd.grad(cost(rows.requires_grad_(True)), rows)
        with torch.no_grad():
            assert cost(self.right(task, targets)) < cost(rows)
            assert cost(rows - 0.1 * slope) < cost(rows)

    def test_rows_of_weight_0_do_not_count(self, task: Task) -> None:
        rows, targets = self.given(task)
        count = len(rows) // 3
        weight = (torch.arange(len(rows)) < count).to(rows.dtype)
        weighted = task.supervised(rows, dataclasses.replace(targets, weight=weight))
        alone = task.supervised(rows[:count], _some(targets, torch.arange(count)))
        for name, value in alone.items():
            assert weighted[name].item() == pytest.approx(value.item(), rel=1e-5), "use losses.row_mean"

    def test_mixed_targets_are_learnt_from(self, task: Task) -> None:
        rows, targets = self.given(task)
        mixed = targets.mixed(torch.arange(len(rows)).flip(0), torch.tensor(0.75))
        assert all(value.isfinite() for value in task.supervised(rows, mixed).values())

    # scores ----------------------------------------------------------------------------------------------------------
    def test_scores_are_declared_and_within_their_bounds(self, task: Task) -> None:
        rows, targets = self.given(task)
        declared = {metric.name: metric for metric in task.metrics}
        for teacher in (None, self.given(task)[0].flip(0)):
            found = self.scored(task, [(rows, targets, teacher)])
            assert task.headline.name in found
            assert set(found) <= set(declared)
            for name, value in found.items():
                low, high = declared[name].bounds
                assert low <= value <= high, name

    def test_batches_do_not_matter(self, task: Task) -> None:
        rows, targets = self.given(task)
        teacher = rows.flip(0)
        whole = self.scored(task, [(rows, targets, teacher)])
        parts = list(self.parts(rows, targets, teacher))
        for given in (parts, parts[::-1]):
            assert self.scored(task, given) == pytest.approx(whole, rel=1e-9, abs=1e-12)

    def test_right_rows_score_best(self, task: Task) -> None:
        rows, targets = self.given(task)
        right = self.right(task, targets)
        best, worse = (self.scored(task, [(given, targets, None)]) for given in (right, rows))
        sign, name = task.headline.sign, task.headline.name
        assert sign * best[name] > sign * worse[name]

    def test_the_scorer_keeps_a_few_numbers_a_row(self, task: Task) -> None:
        """No rows of logits: ImageNet's would be gigabytes."""
        rows, targets = self.given(task)
        scorer = task.scorer()
        for part in self.parts(rows, targets, None):
            scorer.add(*part)
        kept = list(_tensors(vars(scorer)))
        assert all(value.ndim < 2 or value.shape[-1] == 1 for value in kept)
        assert sum(value.numel() for value in kept) <= 12 * len(rows) + 100 * task.outputs

    def scored(self, task: Task, parts: list[tuple[Tensor, Targets, Tensor | None]]) -> dict[str, float]:
        scorer = task.scorer()
        for part in parts:
            scorer.add(*part)
        return scorer.scores()

    def parts(
        self, rows: Tensor, targets: Targets, teacher: Tensor | None
    ) -> Iterator[tuple[Tensor, Targets, Tensor | None]]:
        """The same rows in batches of unequal size."""
        for index in torch.arange(len(rows)).split([5, len(rows) - 6, 1]):
            yield rows[index], _some(targets, index), None if teacher is None else teacher[index]

    # answers ---------------------------------------------------------------------------------------------------------
    def test_equal_answers_together_are_one(self, task: Task) -> None:
        answers = self.answers(task, COUNT)
        torch.testing.assert_close(task.combined([answers, answers], "mean"), answers)

    def test_confidence_is_a_number_a_row_or_a_refusal(self, task: Task) -> None:
        rows, targets = self.given(task)
        try:
            found = task.confidence(rows)
        except Refusal as refused:
            explained(refused)
            return
        assert found.shape == (len(rows),)
        if task.kind == "categorical":
            assert (task.confidence(self.right(task, targets)) >= found).all()


def _some(targets: Targets, index: Tensor) -> Targets:
    """The targets of some rows."""
    weight = None if targets.weight is None else targets.weight[index]
    return dataclasses.replace(targets, values=targets.values[index], weight=weight)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)

"""Targets: compact forms against dense probabilities made by a loop."""

from __future__ import annotations

import torch

from kdbench.losses import cross_entropy
from kdbench.targets import Targets

LABELS = torch.tensor([2, 0, 1, 2])


def eye() -> torch.Tensor:
    return torch.eye(3)[LABELS]


def test_hard_targets_are_one_hot() -> None:
    hard = Targets(LABELS, 3)
    assert hard.hard
    assert torch.equal(hard.dense(), eye())
    assert torch.equal(hard.labels, LABELS)


def test_mixed_targets_are_convex_combinations_also_when_mixed_twice() -> None:
    other, again = torch.tensor([1, 2, 3, 0]), torch.tensor([3, 2, 1, 0])
    share, each = torch.tensor(0.7), torch.tensor([0.2, 0.9, 0.5, 1.0])
    once = Targets(LABELS, 3).mixed(other, share)
    twice = once.mixed(again, each)
    first = 0.7 * eye() + (1 - share) * eye()[other]
    torch.testing.assert_close(once.dense(), first)
    torch.testing.assert_close(twice.dense(), each[:, None] * first + (1 - each[:, None]) * first[again])
    assert not once.hard
    assert torch.equal(once.labels, first.argmax(1))


def test_smoothing_is_linear_and_repeats() -> None:
    smooth = Targets(LABELS, 3).smoothed(0.1)
    torch.testing.assert_close(smooth.dense(), 0.9 * eye() + 0.1 / 3)
    torch.testing.assert_close(smooth.smoothed(0.2).dense(), 0.8 * smooth.dense() + 0.2 / 3)


def test_numbers_are_mixed_as_numbers() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    mixed = Targets(values).mixed(torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    assert torch.equal(mixed.values, torch.tensor([[2.5, 3.5], [3.0, 4.0]]))
    assert not mixed.hard


def test_rows_of_weight_zero_do_not_count() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    kept = torch.tensor([0, 2])
    assert torch.equal(
        cross_entropy(rows, Targets(LABELS, 3, weight=weight)), cross_entropy(rows[kept], Targets(LABELS[kept], 3))
    )


def test_compact_and_dense_cross_entropy_are_the_same_to_the_bit() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    compact, dense = cross_entropy(rows, Targets(LABELS, 3)), cross_entropy(rows, eye())
    assert torch.equal(compact, dense)
    one, other = (torch.autograd.grad(loss, rows)[0] for loss in (compact, dense))
    assert torch.equal(one, other)

"""Distances to the teacher's rows, one row at a time."""

from __future__ import annotations

import pytest
import torch

from kdbench.batch import Batch, Out
from kdbench.methods.imitate import Imitate, distances
from kdbench.tasks.regression import Regression


def rows(seed: int) -> torch.Tensor:
    return 2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(s: torch.Tensor, t: torch.Tensor, distance: str, delta: float) -> float:
    terms = []
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        e = abs(a - b)
        terms.append(e**2 if distance == "squared" or e <= delta else 2 * delta * e - delta**2)
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("distance", "delta"), [("squared", 1.0), ("huber", 0.5), ("huber", 100.0)])
def test_each_row_is_a_mean_over_its_numbers(distance: str, delta: float) -> None:
    s, t = rows(0), rows(1)
    expected = [by_hand(a, b, distance, delta) for a, b in zip(s, t, strict=True)]
    torch.testing.assert_close(distances(s, t, distance, delta), torch.tensor(expected, dtype=torch.float64))


def batch(labels: torch.Tensor) -> Batch:
    task = Regression(3)
    return Batch(labels, task.targets(labels), torch.arange(len(labels)), task, 0, 1, torch.Generator())


def test_terms_are_weighted_and_teachers_averaged() -> None:
    s, labels, method = rows(0), rows(3), Imitate(weight=2.0, ce_weight=0.5)
    teachers = {name: Out(name, rows(seed)) for name, seed in (("a", 1), ("b", 2))}
    found = method.loss(Out("student", s), teachers, batch(labels), method.heads(None, {}))
    torch.testing.assert_close(found["ce"], 0.5 * (s - labels).square().mean())
    mean = sum((s - out.rows).square().mean() for out in teachers.values()) / 2
    torch.testing.assert_close(found["imitate"], 2 * mean)


def test_unknown_rows_do_not_count() -> None:
    s, t, labels = rows(0), rows(1), rows(2)
    labels[2:4] = torch.nan
    kept = torch.tensor([0, 1, 4, 5])
    method = Imitate()
    holes = method.loss(Out("student", s), {"t": Out("t", t)}, batch(labels), None)
    alone = method.loss(Out("student", s[kept]), {"t": Out("t", t[kept])}, batch(labels[kept]), None)
    for name in ("ce", "imitate"):
        torch.testing.assert_close(holes[name], alone[name])

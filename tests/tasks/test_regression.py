"""Regression against scikit-learn's metrics and means worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from kdbench.method import Needs, Refusal
from kdbench.tasks.classification import Classification
from kdbench.tasks.regression import Regression


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scored(task: Regression, answers: torch.Tensor, labels: torch.Tensor, teacher=None, size: int = 7) -> dict:
    """Of batches of `size` examples."""
    scorer = task.scorer()
    for index in torch.arange(len(labels)).split(size):
        taught = None if teacher is None else task.rows(teacher[index])
        scorer.add(task.rows(answers[index]), task.targets(labels[index]), taught)
    return scorer.scores()


@pytest.mark.parametrize("width", [1, 3])
def test_scores_are_scikit_learns_in_the_targets_own_units(width: int) -> None:
    labels = 77 * numbers(40, width) + torch.tensor([150.0, -3, 20])[:width]
    task = Regression(width).fitted(labels)
    said, teacher = numbers(40, width, seed=1), numbers(40, width, seed=2)
    scale, centre = torch.tensor(task.scale), torch.tensor(task.centre)
    own, taught = said * scale + centre, teacher * scale + centre
    found = scored(task, said, labels, teacher)
    assert set(found) == {metric.name for metric in task.metrics}
    assert found["rmse"] == pytest.approx(math.sqrt(((own - labels) ** 2).mean()))
    if width == 1:
        assert found["rmse"] == pytest.approx(root_mean_squared_error(labels, own))
        assert found["rmse_to_teacher"] == pytest.approx(root_mean_squared_error(taught, own))
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, own))
    assert found["r2"] == pytest.approx(r2_score(labels, own))


def test_the_way_a_split_is_cut_changes_nothing() -> None:
    labels, said = numbers(30, 1), numbers(30, 1, seed=1)
    task = Regression(1).fitted(labels)
    assert scored(task, said, labels, size=30) == pytest.approx(scored(task, said, labels, size=4))


def test_a_perfect_answer_and_the_mean() -> None:
    labels = 5 * numbers(20, 2) + 8
    task = Regression(2).fitted(labels)
    perfect = (labels - torch.tensor(task.centre)) / torch.tensor(task.scale)
    assert scored(task, perfect, labels)["rmse"] == pytest.approx(0, abs=1e-6)
    assert scored(task, perfect, labels)["r2"] == pytest.approx(1)
    assert scored(task, torch.zeros(20, 2), labels)["r2"] == pytest.approx(0, abs=1e-6)


def test_unknown_targets_count_nowhere() -> None:
    labels, said = 9 * numbers(20, 1) + 4, numbers(20, 1, seed=1)
    known = torch.arange(20) % 3 != 0
    holes = labels.clone()
    holes[~known] = torch.nan
    task = Regression(1).fitted(holes)
    assert task == Regression(1).fitted(labels[known])
    assert scored(task, said, holes, said + 1) == pytest.approx(
        scored(task, said[known], labels[known], said[known] + 1)
    )
    loss = task.supervised(task.rows(said), task.targets(holes))["mse"]
    alone = task.supervised(task.rows(said[known]), task.targets(labels[known]))["mse"]
    torch.testing.assert_close(loss, alone)
    wild = torch.where(known[:, None], said, 1e6)
    torch.testing.assert_close(task.supervised(task.rows(wild), task.targets(holes))["mse"], alone)


def test_pixels_are_rows_example_by_example() -> None:
    maps = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    rows = Regression(3).rows(maps)
    expected = [maps[b, :, i, j].tolist() for b in range(2) for i in range(2) for j in range(2)]
    assert rows.tolist() == expected
    assert Regression(3).targets(maps).values.tolist() == expected


def test_mixed_maps_are_those_of_mixed_examples() -> None:
    maps, share, other = numbers(4, 2, 3, 3), torch.tensor([0.2, 0.5, 0.7, 1.0]), torch.tensor([2, 0, 3, 1])
    task = Regression(2)
    kept = share.double().view(4, 1, 1, 1)
    expected = task.targets(kept * maps + (1 - kept) * maps[other])
    torch.testing.assert_close(task.targets(maps).mixed(other, share).values, expected.values)
    one = task.targets(maps).mixed(other, torch.tensor(0.3))
    torch.testing.assert_close(one.values, task.targets(0.3 * maps + 0.7 * maps[other]).values)
    maps[0, :, 1, 1] = torch.nan  # a mixed row is known where both parts are
    known = task.targets(0.3 * maps + 0.7 * maps[other]).weight
    assert torch.equal(task.targets(maps).mixed(other, torch.tensor(0.3)).weight, known)


def test_a_constant_target_has_scale_one_and_no_r2() -> None:
    labels = torch.full((6, 1), 3.0)
    task = Regression(1).fitted(labels)
    assert (task.centre, task.scale) == ((3.0,), (1.0,))
    found = scored(task, torch.ones(6, 1), labels)
    assert found == {"rmse": 1, "mae": 1}
    assert scored(task, torch.ones(2, 1), torch.full((2, 1), torch.nan)) == {}


def test_centre_and_scale_are_numpys() -> None:
    labels = 3 * numbers(25, 2, 4) + 1
    task = Regression(2).fitted(labels)
    flat = np.moveaxis(labels.numpy(), 1, -1).reshape(-1, 2)
    assert task.centre == pytest.approx(flat.mean(0))
    assert task.scale == pytest.approx(flat.std(0))


@pytest.mark.parametrize(
    ("needs", "word"),
    [(Needs(categorical=True), "classes"), (Needs(on_policy=True), "generates nothing"), (Needs(mixable=True), "")],
)
def test_what_it_cannot_do_is_said(needs: Needs, word: str) -> None:
    assert word in Regression.misfit(needs)
    assert bool(Regression.misfit(needs)) is bool(word)
    assert Classification.misfit(dataclasses.replace(needs, on_policy=False)) == ""


def test_it_has_no_confidence() -> None:
    with pytest.raises(Refusal, match="no measure of confidence"):
        Regression(1).confidence(torch.zeros(2, 1))


@pytest.mark.parametrize("task", [Classification, Regression])
def test_what_is_followed_and_ranked_is_measured(task) -> None:
    names = [metric.name for metric in task.metrics]
    assert task.headline in task.metrics
    assert set(task.followed) <= set(names)
    assert len(set(names)) == len(names)
    assert task.metric(names[-1]) == task.metrics[-1]
    assert task.metric("nothing") is None


def test_a_value_is_shown_with_its_unit() -> None:
    assert Classification.headline.shown(56.789) == "56.79%"
    assert Regression.headline.shown(0.12345) == "rmse 0.123"
    assert Classification.metric("nll").shown(1.5) == "nll 1.500 nats"
    assert Classification.metric("agreement").shown(0.456) == "agreement 45.6%"

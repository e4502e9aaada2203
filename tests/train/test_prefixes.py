"""Prefixes and early exits against sums worked out one image at a time."""

from __future__ import annotations

import pytest
import torch

from kdbench.tasks import classification, combined
from kdbench.tasks.classification import Classification
from kdbench.train import prefixes as anytime
from kdbench.train.prefixes import THRESHOLDS, Steps, leaving

TASK = Classification(7)
ROLES, SIZES = ("weak1", "weak2", "weak3"), [(10, 100), (20, 300), (40, 500)]


@pytest.fixture
def said() -> dict[str, list[torch.Tensor]]:
    made = torch.Generator().manual_seed(0)
    return {split: [2 * torch.randn(n, 7, generator=made) for _ in ROLES] for split, n in (("val", 50), ("test", 80))}


@pytest.fixture
def labels() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return {split: torch.randint(7, (n,), generator=made) for split, n in (("val", 50), ("test", 80))}


@pytest.fixture
def teacher() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(2)
    return {split: torch.randn(n, 7, generator=made) for split, n in (("val", 50), ("test", 80))}


def ladder(answers, combine: str) -> list[torch.Tensor]:
    return anytime.ladder(answers, TASK, combine)


def steps(said, labels, teacher, combine: str, thresholds=THRESHOLDS) -> dict[str, Steps]:
    """Of batches of 16: what comes out does not depend on how a split was cut."""
    found = {split: Steps(TASK, len(ROLES), combine, thresholds) for split in said}
    for split, answers in said.items():
        for index in torch.arange(len(labels[split])).split(16):
            taught = teacher[split][index] if teacher else None
            found[split].add([each[index] for each in answers], TASK.targets(labels[split][index]), taught)
    return found


def prefixes(said, labels, teacher, combine: str):
    return anytime.prefixes(ROLES, SIZES, steps(said, labels, teacher, combine))


def exits(macs, said, labels, combine: str, thresholds=THRESHOLDS):
    return anytime.exits(macs, steps(said, labels, None, combine, thresholds))


def test_answers_are_sums_or_means(said) -> None:
    a, b, c = said["val"]
    torch.testing.assert_close(combined([a, b, c], "sum"), a + b + c)
    torch.testing.assert_close(combined([a, b, c], "mean"), (a + b + c) / 3)
    for found, expected in zip(ladder([a, b, c], "mean"), (a, (a + b) / 2, (a + b + c) / 3), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_every_prefix_has_scores_size_and_its_role_alone(said, labels, teacher, combine: str) -> None:
    found = prefixes(said, labels, teacher, combine)
    assert [p.role for p in found] == list(ROLES)
    assert [p.parameters for p in found] == [10, 30, 70]
    assert [p.macs for p in found] == [100, 400, 900]
    for k, prefix in enumerate(found):
        for split in ("val", "test"):
            together = ladder(said[split], combine)[k]
            for name, value in classification.scores(together, labels[split], teacher[split]).items():
                assert prefix.scores[f"{split}/{name}"] == value
            for name, value in classification.scores(said[split][k], labels[split], teacher[split]).items():
                assert prefix.alone[f"{split}/{name}"] == value
        assert {"val/top1", "test/nll", "test/ece", "test/agreement"} <= set(prefix.scores)
    assert found[0].scores == found[0].alone


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_exits_are_those_of_a_loop_over_images(said, labels, combine: str) -> None:
    macs = [m for _, m in SIZES]
    for leave in exits(macs, said, labels, combine):
        for split in ("val", "test"):
            steps = ladder(said[split], combine)
            right, spent, left = 0, 0, [0, 0, 0]
            for i, label in enumerate(labels[split].tolist()):
                k = next((k for k in (0, 1) if steps[k][i].softmax(0).max() >= leave.threshold), 2)
                right += steps[k][i].argmax().item() == label
                spent += sum(macs[: k + 1])
                left[k] += 1
            n = len(labels[split])
            assert leave.scores[f"{split}/top1"] == pytest.approx(100 * right / n)
            assert leave.macs[split] == pytest.approx(spent / n)
            if split == "test":
                assert leave.leaving == pytest.approx([count / n for count in left])


def test_the_extremes_are_the_first_role_and_the_whole_answer(said, labels, teacher) -> None:
    macs = [m for _, m in SIZES]
    first, last = exits(macs, said, labels, "sum", thresholds=(0.0, 1.1))
    whole = prefixes(said, labels, teacher, "sum")
    assert first.macs == {"val": 100, "test": 100}
    assert first.leaving == [1, 0, 0]
    assert last.macs == {"val": 900, "test": 900}
    assert last.leaving == [0, 0, 1]
    for leave, prefix in ((first, whole[0]), (last, whole[-1])):
        assert leave.scores == {name: prefix.scores[name] for name in ("val/top1", "test/top1")}


def test_a_higher_threshold_never_costs_less(said, labels) -> None:
    found = exits([m for _, m in SIZES], said, labels, "sum")
    assert [leave.threshold for leave in found] == sorted(THRESHOLDS)
    costs = [leave.macs["test"] for leave in found]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_an_image_leaves_at_the_first_that_is_sure() -> None:
    sure, unsure = torch.tensor([9.0, 0, 0]), torch.zeros(3)
    rows = [[sure, sure, sure], [unsure, sure, unsure], [unsure, unsure, unsure]]
    logits = torch.stack([torch.stack(row) for row in rows], dim=1)
    assert leaving(logits.softmax(2).amax(2), 0.9).tolist() == [0, 1, 2]

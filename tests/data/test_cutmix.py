from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from training import digits, recipe, task

from kdbench.data.batches import mixed
from kdbench.data.cutmix import cut_and_mixed, windows
from kdbench.method import Refusal
from kdbench.methods.dkd import DKD
from kdbench.methods.kd import KD
from kdbench.suite.fields import CutMix, Recipe
from kdbench.targets import Targets
from kdbench.train.engine import Engine

torch.set_num_threads(1)

KEY = {"seed": 0, "epoch": 0}


def batch(n: int = 30, size: int = 10) -> tuple[torch.Tensor, Targets, torch.Tensor]:
    """Every image has a value of its own, so that a pixel says where it is from."""
    x = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 3, size, size).contiguous()
    return x, Targets(torch.arange(n) % 5, 5), torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:n]


def test_each_image_is_itself_and_a_rectangle_of_its_neighbour_and_labels_follow_the_area() -> None:
    x, targets, index = batch()
    (first, second), mixed_targets = cut_and_mixed([x, -x], targets, index, CutMix(), **KEY)
    boxes = windows(index, 10, 10, CutMix(), **KEY).tolist()
    dense, mixed_dense = targets.dense(), mixed_targets.dense()
    for i, (top, left, bottom, right) in enumerate(boxes):
        expected = x[i].clone()
        expected[:, top:bottom, left:right] = x[i - 1][:, top:bottom, left:right]
        assert torch.equal(first[i], expected)
        assert torch.equal(second[i], -expected)  # views share windows
        kept = 1 - (bottom - top) * (right - left) / 100
        assert (first[i, 0] == x[i, 0, 0, 0]).float().mean().item() == pytest.approx(kept)
        torch.testing.assert_close(mixed_dense[i], kept * dense[i] + (1 - kept) * dense[i - 1])
    assert len({tuple(box) for box in boxes}) > 10


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_the_window_before_clipping_has_a_beta_distributed_area(alpha: float) -> None:
    """Seen where the window cannot touch a border: near-central ones of a large image, undistorted up to the pixel."""
    index, size = torch.arange(60_000), 1000
    top, left, bottom, right = windows(index, size, size, CutMix(alpha=alpha), **KEY).double().unbind(1)
    free = (top > 0) & (left > 0) & (bottom < size) & (right < size)
    # Condition on the side being small enough never to be clipped when the centre is in the middle fifth.
    centre_y, centre_x = (top + bottom) / 2, (left + right) / 2
    middle = free & ((centre_y - 500).abs() < 100) & ((centre_x - 500).abs() < 100) & (bottom - top < 700)
    area = ((bottom - top) / size)[middle].square().numpy()
    law = stats.beta(alpha, alpha)
    top_area = 0.7**2
    assert len(area) > 300
    assert stats.kstest(area, lambda a: law.cdf(a) / law.cdf(top_area)).statistic < 0.08


def test_probability_leaves_examples_whole() -> None:
    index = torch.arange(4000)
    boxes = windows(index, 64, 64, CutMix(probability=0.25), **KEY)
    whole = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) == 0).float().mean()
    assert 0.70 < whole < 0.78
    x, targets, few = batch()
    (same,), same_targets = cut_and_mixed([x], targets, few, CutMix(probability=1e-9), **KEY)
    assert torch.equal(same, x)
    assert torch.equal(same_targets.dense(), targets.dense())


def test_windows_are_a_function_of_seed_epoch_and_example() -> None:
    index = torch.arange(200)
    first = windows(index, 32, 32, CutMix(), **KEY)
    assert torch.equal(windows(index.flip(0), 32, 32, CutMix(), **KEY).flip(0), first)
    for key in ({"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}):
        assert (windows(index, 32, 32, CutMix(), **key) == first).all(1).float().mean() < 0.1


def test_without_cutmix_nothing_changes() -> None:
    x, targets, index = batch()
    (same,), same_targets = mixed([x], targets, index, Recipe(epochs=1), (0, 0))
    assert same is x
    assert same_targets is targets


def test_students_and_teachers_see_the_mixed_pixels_and_hard_labels_are_refused() -> None:
    small, made = digits(0.1), recipe(augment={"cutmix": {}})
    seen: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}
    work = task(KD(), small, recipe_=made)
    for role, model in work.models.items():
        model.register_forward_hook(
            lambda m, inputs, out, role=role: (
                seen[role].append(inputs[0].clone()) if m.training or role == "teacher" else None
            )
        )
    plain = task(KD(), small, recipe_=recipe(augment={}))
    trained = Engine(work).train()
    teacher = [x for x in seen["teacher"] if len(x) == 32]
    assert len(seen["student"]) == len(teacher) > 3
    assert all(torch.equal(a, b) for a, b in zip(seen["student"], teacher, strict=True))
    assert trained.curves["train/loss"] != Engine(plain).train().curves["train/loss"]
    with pytest.raises(Refusal, match="needs hard labels, but the targets of its batches are mixed"):
        Engine(task(DKD(), small, recipe_=made)).train()


def test_windows_are_anywhere() -> None:
    """Of those with 11 rows, that none was cut off from (they touch no border), every place is equally likely."""
    top, _, bottom, _ = windows(torch.arange(60_000), 16, 16, CutMix(alpha=16.0), **KEY).unbind(1)
    inner = (bottom - top == 11) & (top > 0) & (bottom < 16)
    counts = np.bincount(top[inner].numpy())[1:]
    assert counts.shape == (4,)
    assert stats.chisquare(counts).pvalue > 1e-4

"""Shared formulas against loops in numpy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.losses import as_map, cross_entropy, full_precision, map_shape, mean_of, pool_to_smaller, soft_kl, wide
from kdbench.method import Refusal

Z_S = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=torch.float64)
Z_T = torch.tensor([[2.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)


def softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def test_cross_entropy_of_soft_targets_is_the_sum_over_classes() -> None:
    targets = np.array([[0.7, 0.1, 0.2], [0.0, 1.0, 0.0]])
    expected = 0.0
    for row, target in zip(Z_S.numpy(), targets, strict=True):
        for c, p in enumerate(softmax(row)):
            expected -= target[c] * math.log(p) / 2
    assert cross_entropy(Z_S, torch.tensor(targets)).item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_hard_targets_is_torch_s() -> None:
    labels = torch.tensor([2, 0])
    expected = torch.nn.functional.cross_entropy(Z_S, labels)
    assert cross_entropy(Z_S, torch.eye(3, dtype=torch.float64)[labels]).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_kl_is_the_mean_over_the_batch_times_the_squared_temperature(temperature: float) -> None:
    expected = 0.0
    for s, t in zip(Z_S.numpy(), Z_T.numpy(), strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        expected += temperature**2 * sum(p[c] * math.log(p[c] / q[c]) for c in range(3)) / 2
    assert soft_kl(Z_S, Z_T, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_soft_kl_tends_to_the_centred_squared_distance_of_logits() -> None:
    difference = (Z_S - Z_S.mean(1, keepdim=True)) - (Z_T - Z_T.mean(1, keepdim=True))
    limit = 0.5 * difference.pow(2).sum(1).mean() / Z_S.shape[1]
    errors = [abs(soft_kl(Z_S, Z_T, t).item() - limit.item()) for t in (10.0, 100.0, 1000.0)]
    assert errors[2] < 1e-3 * limit.item()
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # of first order in 1 / T


def test_soft_kl_of_equal_logits_is_zero_with_zero_gradient() -> None:
    z = Z_T.clone().requires_grad_()
    loss = soft_kl(z, Z_T, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert z.grad.abs().max() < 1e-14


def test_soft_kl_ignores_a_constant_added_to_the_logits() -> None:
    shifted = soft_kl(Z_S + 7.0, Z_T - 3.0, 2.0)
    assert shifted.item() == pytest.approx(soft_kl(Z_S, Z_T, 2.0).item(), rel=1e-12)


def test_soft_kl_is_finite_for_extreme_logits() -> None:
    z_s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = soft_kl(z_s, torch.tensor([[-1e4, 1e4, 0.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert z_s.grad.isfinite().all()


def test_mean_of_terms() -> None:
    terms = [torch.tensor(1.0), torch.tensor(4.0)]
    assert mean_of(terms).item() == 2.5
    assert mean_of(terms[:1]) is terms[0]
    with pytest.raises(ValueError, match="needs a teacher"):
        mean_of([])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((7, 4, 3), (7, 4, 3)), ((16, 7), (7, 4, 4)), ((17, 7), (7, 4, 4)), ((7,), (7, 1, 1)), ((1, 7), (7, 1, 1))],
)
def test_features_as_maps(shape: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    assert map_shape(shape) == expected
    feature = torch.randn(2, *shape)
    found = as_map(feature)
    assert tuple(found.shape[1:]) == expected
    if len(shape) == 2:  # token i sits in row i // side, column i % side; a class token is dropped
        side, offset = expected[1], shape[0] - expected[1] ** 2
        for token in range(side * side):
            assert torch.equal(found[:, :, token // side, token % side], feature[:, token + offset])


@pytest.mark.parametrize("shape", [(3, 7), (0, 7), (2, 3, 4, 5)])
def test_features_that_are_no_map_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Refusal, match="a block answers"):
        map_shape(shape)


def test_pooling_takes_the_larger_map_to_the_smaller() -> None:
    large, small = torch.arange(32.0).reshape(1, 2, 4, 4), torch.randn(1, 3, 2, 2)
    pooled, same = pool_to_smaller(large, small)
    assert same is small
    for c in range(2):
        for i in range(2):
            for j in range(2):
                window = large[0, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                assert pooled[0, c, i, j].item() == window.mean().item()
    assert torch.equal(pool_to_smaller(small, large)[1], pooled)


def test_autocast_is_left_for_float32() -> None:
    a = torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a):
            assert torch.equal(a @ a, torch.mm(a, a))
            assert (a @ a).dtype == torch.float32
    assert wide(a.bfloat16()).dtype == torch.float32
    assert wide(a) is a
    assert wide(a.double()).dtype == torch.float64

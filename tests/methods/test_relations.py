"""Relations and information between the examples of a batch: loops in numpy, invariances, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.methods.cc import cc_loss, correlation
from kdbench.methods.itrd import correlation as columns
from kdbench.methods.itrd import information
from kdbench.methods.pkt import neighbours, pkt_loss
from kdbench.methods.wkd import class_costs, gaussian, sinkhorn

MADE = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=MADE, dtype=torch.float64)


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(randn(size, size))[0]


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# pkt -----------------------------------------------------------------------------------------------------------------
def test_pkt_against_a_loop() -> None:
    s, t = randn(4, 3), randn(4, 6)
    p = []
    for f in (s.numpy(), t.numpy()):
        rows = [[(cosine(a, b) + 1) / 2 for b in f] for a in f]
        p.append([[v / sum(row) for v in row] for row in rows])
    expected = np.mean(
        [p[1][i][j] * math.log((p[1][i][j] + 1e-7) / (p[0][i][j] + 1e-7)) for i in range(4) for j in range(4)]
    )
    assert pkt_loss(s, t).item() == pytest.approx(expected, rel=1e-6)


def test_pkt_ignores_rotation_and_the_length_of_each_feature() -> None:
    s, t = randn(5, 4), randn(5, 3)
    lengths = randn(5, 1).abs() + 0.1
    assert pkt_loss(lengths * s @ rotation(4), t).item() == pytest.approx(pkt_loss(s, t).item(), rel=1e-9)
    assert pkt_loss(s @ rotation(4), s).item() == pytest.approx(0, abs=1e-15)
    assert pkt_loss(s, t).item() > 0
    assert neighbours(s).sum(1).tolist() == pytest.approx([1.0] * 5)


# cc ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.0, 3)])
def test_cc_against_a_loop(gamma: float, order: int) -> None:
    s, t = randn(4, 3), randn(4, 6)

    def kernel(a, b) -> float:
        series = sum((2 * gamma) ** p / math.factorial(p) * cosine(a, b) ** p for p in range(order + 1))
        return math.exp(-2 * gamma) * series

    expected = np.mean(
        [
            (kernel(s[i].numpy(), s[j].numpy()) - kernel(t[i].numpy(), t[j].numpy())) ** 2
            for i in range(4)
            for j in range(4)
        ]
    )
    assert cc_loss(s, t, gamma, order).item() == pytest.approx(expected, rel=1e-9)


def test_cc_s_series_is_the_gaussian_kernel_in_the_limit() -> None:
    f = torch.nn.functional.normalize(randn(5, 3), dim=1)
    expected = torch.exp(-0.4 * torch.cdist(f, f).square())
    torch.testing.assert_close(correlation(f, 0.4, 20), expected, rtol=1e-9, atol=1e-9)


def test_cc_ignores_rotation_scale_and_the_order_of_the_batch() -> None:
    s, t, order = randn(5, 4), randn(5, 3), torch.tensor([3, 0, 4, 1, 2])
    base = cc_loss(s, t, 0.4, 2).item()
    assert cc_loss(3 * s @ rotation(4), t, 0.4, 2).item() == pytest.approx(base, rel=1e-9)
    assert cc_loss(s[order], t[order], 0.4, 2).item() == pytest.approx(base, rel=1e-9)
    assert cc_loss(s @ rotation(4), s, 0.4, 2).item() == pytest.approx(0, abs=1e-20)


# itrd ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [1.01, 1.5])
def test_itrd_s_correlation_against_numpy(alpha: float) -> None:
    s, t = randn(20, 4), randn(20, 4)
    expected = 0.0
    for d in range(4):
        r = np.corrcoef(s[:, d].numpy(), t[:, d].numpy())[0, 1]
        expected += abs(r - 1) ** (2 * alpha)
    assert columns(s, t, alpha).item() == pytest.approx(math.log2(expected + 1e-6), rel=1e-4)


def test_itrd_s_correlation_ignores_scale_and_shift_of_columns_and_is_least_when_they_agree() -> None:
    s, t = 10 * randn(20, 4), 10 * randn(20, 4)
    moved = s * torch.tensor([1.0, 5.0, 0.3, 2.0]) + 7
    assert columns(moved, t, 1.01).item() == pytest.approx(columns(s, t, 1.01).item(), rel=1e-5)
    assert columns(s, s, 1.01).item() == pytest.approx(math.log2(1e-6), abs=1e-3)


def entropy(matrix) -> float:
    """Renyi's entropy of order 2, from the eigenvalues."""
    values = np.linalg.eigvalsh(matrix / np.trace(matrix))
    return -math.log2((values**2).sum())


def test_itrd_s_information_is_renyi_s_conditional_entropy() -> None:
    s, t = randn(6, 3), randn(6, 5)
    g_s, g_t = (np.array([[cosine(a, b) for b in f.numpy()] for a in f.numpy()]) for f in (s, t))
    expected = entropy(g_s * g_t) - entropy(g_s)
    assert information(s, t).item() == pytest.approx(expected, abs=1e-4)
    assert information(s, torch.ones(6, 5, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)


# wkd -----------------------------------------------------------------------------------------------------------------
P, Q = (2 * randn(3, 4)).softmax(1), (2 * randn(3, 4)).softmax(1)


def test_sinkhorn_against_a_loop_over_plans() -> None:
    cost = class_costs(randn(4, 6), 2.0)
    found = sinkhorn(P, Q, cost, 0.2, 200)
    kernel = np.exp(-cost.numpy() / 0.2)
    for b in range(3):
        p, q, v = P[b].numpy(), Q[b].numpy(), np.ones(4)
        for _ in range(200):
            u = np.array([p[i] / sum(kernel[i, j] * v[j] for j in range(4)) for i in range(4)])
            v = np.array([q[j] / sum(kernel[i, j] * u[i] for i in range(4)) for j in range(4)])
        plan = u[:, None] * kernel * v
        np.testing.assert_allclose(plan.sum(1), p, rtol=1e-6)
        np.testing.assert_allclose(plan.sum(0), q, rtol=1e-6)
        assert found[b].item() == pytest.approx((plan * cost.numpy()).sum(), rel=1e-9)


def test_sinkhorn_comes_near_to_the_exact_transport() -> None:
    from scipy.optimize import linprog

    cost = class_costs(randn(4, 6), 2.0)
    found = sinkhorn(P, Q, cost, 0.01, 5000)
    rows, cols = np.kron(np.eye(4), np.ones(4)), np.kron(np.ones(4), np.eye(4))
    for b in range(3):
        best = linprog(cost.numpy().ravel(), A_eq=np.vstack([rows, cols]), b_eq=np.concatenate([P[b], Q[b]])).fun
        assert found[b].item() == pytest.approx(best, rel=0.05)
        assert found[b].item() >= best - 1e-9


def test_equal_costs_off_the_diagonal_count_what_must_move() -> None:
    """Where all classes are equally far, the transport costs the total variation."""
    cost = 1 - torch.eye(4, dtype=torch.float64)
    expected = 0.5 * (P - Q).abs().sum(1)
    torch.testing.assert_close(sinkhorn(P, Q, cost, 0.02, 2000), expected, rtol=1e-3, atol=1e-3)
    assert sinkhorn(P, Q, 0 * cost, 0.05, 10).abs().max() == 0


def test_classes_that_resemble_each_other_lie_near() -> None:
    w = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    cost = class_costs(w, 1.0)
    expected = [0, 0, 1 - math.exp(-1), 1 - math.exp(-2)]
    assert cost[0].tolist() == pytest.approx(expected)
    torch.testing.assert_close(cost, cost.T)


def test_gaussians_against_a_loop() -> None:
    s, t = randn(2, 3, 2, 2), randn(2, 3, 2, 2)
    expected = 0.0
    for b in range(2):
        for d in range(3):
            a, c = s[b, d].numpy().ravel(), t[b, d].numpy().ravel()
            expected += (2 * (a.mean() - c.mean()) ** 2 + (a.std() - c.std()) ** 2) / 2
    assert gaussian(s, t, 2.0).item() == pytest.approx(expected, rel=1e-4)
    assert gaussian(s, s, 2.0).item() == 0
    shuffled = s.flatten(2)[:, :, [2, 0, 3, 1]].reshape(s.shape)
    assert gaussian(shuffled, t, 2.0).item() == pytest.approx(gaussian(s, t, 2.0).item(), rel=1e-12)

"""Logit methods: limiting cases and identities, against loops in numpy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from small_nets import Problem, batch, profile

from kdbench.batch import Out
from kdbench.losses import cross_entropy, soft_kl
from kdbench.method import Refusal
from kdbench.methods.dist import DIST, dist_loss, pearson
from kdbench.methods.dkd import DKD, decoupled, dkd_loss
from kdbench.methods.kd import KD
from kdbench.methods.label_smoothing import LabelSmoothing
from kdbench.methods.none import NoTeacher
from kdbench.targets import Targets

MADE = torch.Generator().manual_seed(0)
Z_S, Z_T = (3 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
TARGETS = torch.eye(5, dtype=torch.float64)[LABELS]


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def said(method, z_s=Z_S, z_t=Z_T, labels=LABELS, epoch=0):
    given = dataclasses.replace(batch(6, dtype=torch.float64, epoch=epoch), targets=Targets(labels, 5))
    return method.loss(Out("student", z_s), {"teacher": Out("teacher", z_t)}, given, torch.nn.Module())


# none, label smoothing -----------------------------------------------------------------------------------------------
def test_no_teacher_is_the_cross_entropy() -> None:
    expected = -np.mean([math.log(softmax(z)[y]) for z, y in zip(Z_S.numpy(), LABELS, strict=True)])
    assert said(NoTeacher())["ce"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_label_smoothing_mixes_two_cross_entropies(epsilon: float) -> None:
    hard, uniform = cross_entropy(Z_S, TARGETS), cross_entropy(Z_S, torch.full_like(TARGETS, 1 / 5))
    expected = (1 - epsilon) * hard + epsilon * uniform
    assert said(LabelSmoothing(epsilon))["ce"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_label_smoothing_is_torch_s_and_keeps_probabilities() -> None:
    expected = torch.nn.functional.cross_entropy(Z_S, LABELS, label_smoothing=0.1)
    assert said(LabelSmoothing())["ce"].item() == pytest.approx(expected.item(), rel=1e-12)
    dense = Targets(LABELS, 5).smoothed(0.3).dense(torch.float64)
    assert torch.allclose(dense.sum(1), torch.ones(6, dtype=torch.float64))


# kd ------------------------------------------------------------------------------------------------------------------
def test_kd_weighs_both_terms() -> None:
    terms = said(KD(temperature=2.0, ce_weight=0.3, kd_weight=0.6))
    pairs = list(zip(Z_S.numpy() / 2, Z_T.numpy() / 2, strict=True))
    assert terms["kd"].item() == pytest.approx(0.6 * 4 * np.mean([kl(softmax(t), softmax(s)) for s, t in pairs]))
    assert terms["ce"].item() == pytest.approx(0.3 * cross_entropy(Z_S, TARGETS).item())


def test_kd_defaults_are_the_field_s() -> None:
    assert (KD().temperature, KD().ce_weight, KD().kd_weight) == (4.0, 0.1, 0.9)


def test_kd_at_temperature_one_has_the_gradient_of_soft_cross_entropy() -> None:
    grads = []
    for loss in (lambda z: soft_kl(z, Z_T, 1.0), lambda z: cross_entropy(z, Z_T.softmax(1))):
        z = Z_S.clone().requires_grad_()
        loss(z).backward()
        grads.append(z.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_kd_over_teachers_is_the_mean_of_their_terms() -> None:
    given, other = dataclasses.replace(batch(6, dtype=torch.float64), targets=Targets(LABELS, 5)), Z_T.flip(1)
    teachers = {"a": Out("a", Z_T), "b": Out("b", other)}
    both = KD().loss(Out("student", Z_S), teachers, given, torch.nn.Module())["kd"]
    assert both.item() == pytest.approx((said(KD())["kd"] + said(KD(), z_t=other)["kd"]).item() / 2)


# dkd -----------------------------------------------------------------------------------------------------------------
def test_dkd_parts_are_two_kl_divergences() -> None:
    tckd_B, nckd_B = decoupled(Z_S, Z_T, TARGETS)
    for b, y in enumerate(LABELS):
        p, q = softmax(Z_T[b].numpy()), softmax(Z_S[b].numpy())
        binary = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        others = [c for c in range(5) if c != y]
        rest = kl(p[others] / p[others].sum(), q[others] / q[others].sum())
        assert tckd_B[b].item() == pytest.approx(binary, rel=1e-9)
        assert nckd_B[b].item() == pytest.approx(rest, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_tckd_plus_the_share_of_nckd(temperature: float) -> None:
    tckd_B, nckd_B = decoupled(Z_S / temperature, Z_T / temperature, TARGETS)
    share_B = 1 - (Z_T / temperature).softmax(1)[torch.arange(6), LABELS]
    rebuilt = temperature**2 * (tckd_B + share_B * nckd_B).mean()
    assert rebuilt.item() == pytest.approx(soft_kl(Z_S, Z_T, temperature).item(), rel=1e-12)


def test_dkd_is_the_weighted_sum_and_warms_up() -> None:
    tckd_B, nckd_B = decoupled(Z_S / 2, Z_T / 2, TARGETS)
    full = 4 * (0.5 * tckd_B + 3 * nckd_B).mean().item()
    assert dkd_loss(Z_S, Z_T, TARGETS, 2.0, 0.5, 3.0).item() == pytest.approx(full)
    method = DKD(alpha=0.5, beta=3.0, temperature=2.0)
    for epoch, factor in ((0, 1 / 20), (9, 0.5), (19, 1.0), (100, 1.0)):
        assert said(method, epoch=epoch)["dkd"].item() == pytest.approx(factor * full)
    assert said(dataclasses.replace(method, warmup_epochs=0))["dkd"].item() == pytest.approx(full)
    assert said(method)["ce"].item() == pytest.approx(cross_entropy(Z_S, TARGETS).item())


def test_dkd_survives_a_certain_teacher() -> None:
    z_s = Z_S.float().requires_grad_()
    loss = dkd_loss(z_s, 1e3 * Z_T.float(), TARGETS.float(), 1.0, 1.0, 8.0)
    loss.backward()
    assert loss.isfinite()
    assert z_s.grad.isfinite().all()


def test_dkd_of_two_classes_has_no_non_target_part() -> None:
    targets = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 1])]
    tckd_B, nckd_B = decoupled(Z_S[:3, :2], Z_T[:3, :2], targets)
    assert torch.equal(nckd_B, torch.zeros(3, dtype=torch.float64))
    assert tckd_B.mean().item() == pytest.approx(soft_kl(Z_S[:3, :2], Z_T[:3, :2], 1.0).item())


def test_dkd_needs_hard_labels() -> None:
    assert DKD().needs().hard_labels
    assert not KD().needs().hard_labels


# dist ----------------------------------------------------------------------------------------------------------------
def test_pearson_is_scipy_s() -> None:
    for b in range(6):
        assert pearson(Z_S, Z_T, 1)[b].item() == pytest.approx(stats.pearsonr(Z_S[b], Z_T[b]).statistic, rel=1e-6)
    for c in range(5):
        expected = stats.pearsonr(Z_S[:, c], Z_T[:, c]).statistic
        assert pearson(Z_S, Z_T, 0)[c].item() == pytest.approx(expected, rel=1e-6)


def test_dist_is_the_sum_of_two_correlations() -> None:
    p_s, p_t = (z.div(4).softmax(1).numpy() for z in (Z_S, Z_T))
    rows = np.mean([stats.pearsonr(p_s[b], p_t[b]).statistic for b in range(6)])
    columns = np.mean([stats.pearsonr(p_s[:, c], p_t[:, c]).statistic for c in range(5)])
    expected = 16 * (0.5 * (1 - rows) + 2 * (1 - columns))
    assert dist_loss(Z_S, Z_T, 4.0, 0.5, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert dist_loss(Z_T, Z_T, 4.0, 1.0, 1.0).item() == pytest.approx(0, abs=1e-4)
    assert said(DIST(weight=3.0, beta=0.5, gamma=2.0))["dist"].item() == pytest.approx(3 * expected, rel=1e-5)


def test_dist_rows_ignore_scale_and_shift_of_each_row() -> None:
    p_s, p_t = Z_S.softmax(1), Z_T.softmax(1)
    scale, shift = torch.rand(6, 1, generator=MADE, dtype=torch.float64) + 0.5, torch.linspace(-1, 1, 6)[:, None]
    moved = pearson(scale * p_s + shift, p_t, 1)
    torch.testing.assert_close(moved, pearson(p_s, p_t, 1), rtol=1e-6, atol=1e-6)
    assert (pearson(-p_s, p_t, 1) + pearson(p_s, p_t, 1)).abs().max() < 1e-9
    assert (pearson(scale * p_s + shift, p_t, 0) - pearson(p_s, p_t, 0)).abs().max() > 0.1


def test_dist_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="two or more"):
        dist_loss(Z_S[:, :1], Z_T[:, :1], 4.0, 1.0, 1.0)
    lone = dataclasses.replace(profile(Problem(DIST()).student, "student", ()), classes=1)
    with pytest.raises(Refusal, match="two or more"):
        DIST().heads(lone, {"teacher": lone})

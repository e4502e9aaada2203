"""Divergences of logits and their relatives: limiting cases and bounds, against loops in numpy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_nets import Problem, batch

from kdbench.batch import Out
from kdbench.losses import cross_entropy, kl_rows, log_probabilities, soft_kl
from kdbench.method import Refusal
from kdbench.methods.chain import Chain
from kdbench.methods.jsd import JSD, jsd
from kdbench.methods.logit_mse import LogitMSE
from kdbench.methods.multi_kd import MultiKD
from kdbench.methods.reverse_kl import ReverseKL, reverse_kl
from kdbench.methods.skew_kl import SkewKL, log_mixture, skew_kl
from kdbench.methods.ttm import TTM, matching
from kdbench.methods.wttm import WTTM, wttm
from kdbench.targets import Targets

MADE = torch.Generator().manual_seed(0)
Z_S, Z_T, Z_U = (3 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(3))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def softmax(z: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    e = [math.exp(value / temperature) for value in z]
    return np.array([value / sum(e) for value in e])


def kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def rows(temperature: float = 1.0):
    """Pairs of the student's and the teacher's distributions."""
    return [(softmax(s, temperature), softmax(t, temperature)) for s, t in zip(Z_S.numpy(), Z_T.numpy(), strict=True)]


def said(method, teachers=(Z_T,), z_s=Z_S):
    given = dataclasses.replace(batch(6, dtype=torch.float64), targets=Targets(LABELS, 5))
    taught = {f"t{k}": Out(f"t{k}", z) for k, z in enumerate(teachers)}
    return method.loss(Out("student", z_s), taught, given, torch.nn.Module())


def gradient(loss, z=Z_S) -> torch.Tensor:
    z = z.clone().requires_grad_()
    loss(z).backward()
    return z.grad


# the shared formulas -------------------------------------------------------------------------------------------------
def test_rows_of_divergences_have_their_mean_in_soft_kl() -> None:
    log_s, log_t = log_probabilities(Z_S, 3.0), log_probabilities(Z_T, 3.0)
    for b, (p_s, p_t) in enumerate(rows(3.0)):
        assert kl_rows(log_t, log_s)[b].item() == pytest.approx(kl(p_t, p_s), rel=1e-9)
    assert 9 * kl_rows(log_t, log_s).mean().item() == pytest.approx(soft_kl(Z_S, Z_T, 3.0).item(), rel=1e-12)


# reverse kl ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_reverse_kl_is_kd_with_the_roles_exchanged(temperature: float) -> None:
    expected = temperature**2 * np.mean([kl(s, t) for s, t in rows(temperature)])
    assert reverse_kl(Z_S, Z_T, temperature).item() == pytest.approx(expected, rel=1e-9)
    assert reverse_kl(Z_S, Z_T, temperature).item() == pytest.approx(soft_kl(Z_T, Z_S, temperature).item(), rel=1e-9)
    assert said(ReverseKL(temperature=temperature, weight=3.0))["reverse_kl"].item() == pytest.approx(3 * expected)


def test_against_a_uniform_teacher_it_is_the_lack_of_entropy() -> None:
    entropies = [-sum(p * math.log(p) for p in s) for s, _ in rows()]
    found = reverse_kl(Z_S, torch.zeros_like(Z_T), 1.0).item()
    assert found == pytest.approx(math.log(5) - np.mean(entropies), rel=1e-9)


def test_it_seeks_a_mode_where_kd_covers_both() -> None:
    """Students that are softmax of -(c - centre)^2 / 2: one mode, against a teacher with two."""
    classes = torch.arange(9.0, dtype=torch.float64)
    teacher = torch.logaddexp(-((classes - 1) ** 2), -((classes - 7) ** 2) + 0.1)[None]
    centres = torch.linspace(0, 8, 81, dtype=torch.float64)
    students = [-((classes - centre) ** 2)[None] / 2 for centre in centres]
    seeks = centres[int(np.argmin([reverse_kl(z, teacher, 1.0) for z in students]))].item()
    covers = centres[int(np.argmin([soft_kl(z, teacher, 1.0) for z in students]))].item()
    assert seeks == pytest.approx(7, abs=0.3)
    assert covers == pytest.approx(4, abs=0.5)


# skew kl -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_skew_kl_mixes_the_second_distribution(alpha: float, reverse: bool) -> None:
    expected = []
    for s, t in rows(2.0):
        first, second = (s, t) if reverse else (t, s)
        expected.append(kl(first, alpha * first + (1 - alpha) * second))
    assert skew_kl(Z_S, Z_T, alpha, 2.0, reverse).item() == pytest.approx(4 * np.mean(expected), rel=1e-9)
    found = said(SkewKL(alpha=alpha, reverse=reverse, temperature=2.0, weight=0.5))["skew_kl"]
    assert found.item() == pytest.approx(2 * np.mean(expected), rel=1e-9)


def test_without_skew_it_is_the_plain_divergence() -> None:
    assert skew_kl(Z_S, Z_T, 0.0, 1.0, False).item() == pytest.approx(soft_kl(Z_S, Z_T, 1.0).item(), rel=1e-12)
    assert skew_kl(Z_S, Z_T, 0.0, 1.0, True).item() == pytest.approx(reverse_kl(Z_S, Z_T, 1.0).item(), rel=1e-12)
    assert torch.equal(log_mixture(Z_S, Z_T, 1.0), Z_S)
    assert torch.equal(log_mixture(Z_S, Z_T, 0.0), Z_T)
    assert skew_kl(Z_S, Z_T, 1.0, 1.0, False).item() == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_bounded_however_far_apart_both_are(reverse: bool) -> None:
    far = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]])
    z = far.flip(1).requires_grad_()
    found = skew_kl(z, far, 0.1, 1.0, reverse)
    found.backward()
    assert 0 < found.item() <= math.log(10) + 1e-6
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert soft_kl(far.flip(1), far, 1.0).item() > 1000


# jsd -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_two_divergences_from_the_mixture(beta: float) -> None:
    expected = []
    for s, t in rows():
        m = beta * t + (1 - beta) * s
        expected.append(beta * kl(t, m) + (1 - beta) * kl(s, m))
    found = jsd(Z_S, Z_T, beta, 1.0).item()
    assert found == pytest.approx(np.mean(expected), rel=1e-9)
    assert found <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert said(JSD(beta=beta, weight=2.0))["jsd"].item() == pytest.approx(2 * found)
    assert jsd(Z_T, Z_S, 1 - beta, 1.0).item() == pytest.approx(found, rel=1e-9)


def test_jsd_reaches_its_bound_where_nothing_is_shared() -> None:
    far = torch.tensor([[1e4, 0.0, 0.0]], dtype=torch.float64)
    assert jsd(far, far.flip(1), 0.5, 1.0).item() == pytest.approx(math.log(2))


def test_jsd_over_beta_tends_to_kl() -> None:
    assert jsd(Z_S, Z_T, 1e-6, 1.0).item() / 1e-6 == pytest.approx(soft_kl(Z_S, Z_T, 1.0).item(), rel=1e-3)


# ttm, wttm -----------------------------------------------------------------------------------------------------------
def power(p: np.ndarray, gamma: float) -> tuple[np.ndarray, float]:
    raised = np.array([value**gamma for value in p])
    return raised / raised.sum(), raised.sum()


@pytest.mark.parametrize("gamma", [0.1, 0.25, 1.0])
def test_ttm_softens_the_teacher_alone(gamma: float) -> None:
    pairs = [(s, *power(t, gamma)) for s, t in rows()]
    expected = np.mean([kl(q, s) for s, q, _ in pairs])
    weighted = np.mean([total * kl(q, s) for s, q, total in pairs])
    assert matching(Z_S, Z_T, gamma).mean().item() == pytest.approx(expected, rel=1e-9)
    assert wttm(Z_S, Z_T, gamma).item() == pytest.approx(weighted, rel=1e-9)
    assert said(TTM(gamma=gamma, weight=2.0))["ttm"].item() == pytest.approx(2 * expected, rel=1e-9)
    assert said(WTTM(gamma=gamma, weight=2.0))["wttm"].item() == pytest.approx(2 * weighted, rel=1e-9)


def test_both_are_kd_where_nothing_is_transformed() -> None:
    kd = soft_kl(Z_S, Z_T, 1.0).item()
    assert matching(Z_S, Z_T, 1.0).mean().item() == pytest.approx(kd, rel=1e-12)
    assert wttm(Z_S, Z_T, 1.0).item() == pytest.approx(kd, rel=1e-12)


def test_a_smooth_teacher_counts_more_and_a_certain_one_once() -> None:
    student, uniform, certain = torch.randn(1, 8), torch.zeros(1, 8), 1e3 * torch.eye(8)[:1]
    for teacher, weight in ((uniform, 8**0.8), (certain, 1.0)):
        expected = weight * matching(student, teacher, 0.2).item()
        assert wttm(student, teacher, 0.2).item() == pytest.approx(expected, rel=1e-5)


# logit regression ----------------------------------------------------------------------------------------------------
def test_logit_regression_is_the_mean_square() -> None:
    expected = np.mean([(Z_S[b, c] - Z_T[b, c]) ** 2 for b in range(6) for c in range(5)])
    assert said(LogitMSE(weight=0.3, ce_weight=0.0))["logit_mse"].item() == pytest.approx(0.3 * expected, rel=1e-12)
    assert said(LogitMSE(), teachers=(Z_S,))["logit_mse"].item() == 0


def test_kd_tends_to_half_of_it_on_centred_logits() -> None:
    s, t = (z - z.mean(1, keepdim=True) for z in (Z_S, Z_T))
    assert soft_kl(s, t, 1e4).item() == pytest.approx(0.5 * (s - t).square().mean().item(), rel=1e-3)


# several teachers ----------------------------------------------------------------------------------------------------
WEIGHTS = (3.0, 1.0)


def test_the_mean_of_soft_targets_is_matched() -> None:
    expected = []
    for s, t, u in zip(Z_S.numpy(), Z_T.numpy(), Z_U.numpy(), strict=True):
        q = 0.75 * softmax(t, 2.0) + 0.25 * softmax(u, 2.0)
        expected.append(4 * kl(q, softmax(s, 2.0)))
    method = MultiKD(weights=WEIGHTS, temperature=2.0, kd_weight=0.5)
    assert said(method, (Z_T, Z_U))["multi_kd"].item() == pytest.approx(0.5 * np.mean(expected), rel=1e-9)


def test_the_other_means() -> None:
    method = MultiKD(weights=WEIGHTS, temperature=2.0, kd_weight=1.0, combine="logits")
    expected = soft_kl(Z_S, 0.75 * Z_T + 0.25 * Z_U, 2.0)
    assert said(method, (Z_T, Z_U))["multi_kd"].item() == pytest.approx(expected.item(), rel=1e-9)
    method = dataclasses.replace(method, combine="losses")
    expected = 0.75 * soft_kl(Z_S, Z_T, 2.0) + 0.25 * soft_kl(Z_S, Z_U, 2.0)
    assert said(method, (Z_T, Z_U))["multi_kd"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_mean_of_losses_has_the_gradient_of_the_mean_of_targets() -> None:
    one, other = (
        gradient(lambda z, how=how: said(MultiKD(combine=how), (Z_T, Z_U), z)["multi_kd"])
        for how in ("probabilities", "losses")
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("combine", ["probabilities", "logits", "losses"])
def test_one_teacher_or_equal_ones_are_kd(combine: str) -> None:
    expected = 0.9 * soft_kl(Z_S, Z_T, 4.0).item()
    for teachers, weights in (((Z_T,), ()), ((Z_T,) * 3, ()), ((Z_T, Z_T), (5.0, 1.0)), ((Z_T, Z_U), (1.0, 0.0))):
        found = said(MultiKD(weights=weights, combine=combine), teachers)
        assert found["multi_kd"].item() == pytest.approx(expected, rel=1e-9)
        assert found["ce"].item() == pytest.approx(0.1 * cross_entropy(Z_S, Targets(LABELS, 5)).item())


def test_its_teachers_are_the_pair_s() -> None:
    plan = MultiKD().plan(("teacher", "student", "ta", "teacher3", "teacher2"))
    assert plan.stages[0].learners == {"student": ("teacher", "teacher3", "teacher2")}
    assert MultiKD().plan(("teacher", "student")).frozen == ("teacher", "teacher2"), "the missing one is told"
    with pytest.raises(Refusal, match="3 weights for 2 teachers"):
        MultiKD(weights=(1.0, 1.0, 1.0)).plan(("teacher", "student", "teacher2"))
    with pytest.raises(Refusal, match="2 weights for 1 teachers"):
        Problem(Chain(MultiKD(weights=(1.0, 1.0))))
    with pytest.raises(ValueError, match="above 0"):
        MultiKD(weights=(0.0, 0.0))

"""Logit methods whose term holds the label: limiting cases and identities, against loops in numpy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_nets import CLASSES, Problem, batch, maps, profile

from kdbench.batch import Out
from kdbench.losses import kl_rows, log_probabilities, soft_kl
from kdbench.method import Refusal
from kdbench.methods.dkd import decoupled
from kdbench.methods.nkd import NKD, nkd_loss
from kdbench.methods.rld import RLD, mcd, scd
from kdbench.methods.sdd import SDD, cells, sdd_loss
from kdbench.methods.wsld import WSLD, wsld_loss
from kdbench.targets import Targets

MADE = torch.Generator().manual_seed(0)
Z_S, Z_T = (3 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
RIGHT = Z_T.argmax(1)  # labels of which the teacher is right


def softmax(z) -> np.ndarray:
    e = np.array([math.exp(value) for value in z])
    return e / e.sum()


def kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def said(method, labels=LABELS, epoch: int = 0):
    given = dataclasses.replace(batch(6, dtype=torch.float64, epoch=epoch), targets=Targets(labels, 5))
    return method.loss(Out("student", Z_S), {"teacher": Out("teacher", Z_T)}, given, torch.nn.Module())


@pytest.mark.parametrize("method", [NKD(), WSLD(), RLD(), SDD()], ids=lambda m: type(m).__name__)
def test_they_need_hard_labels(method) -> None:
    assert method.needs().hard_labels


# nkd -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0)])
def test_nkd_is_a_target_part_and_a_normalised_rest(gamma: float, temperature: float) -> None:
    terms = []
    for s, t, y in zip(Z_S.numpy(), Z_T.numpy(), LABELS.tolist(), strict=True):
        others = [c for c in range(5) if c != y]
        q_s, q_t = softmax(s[others] / temperature), softmax(t[others] / temperature)
        target = -softmax(t)[y] * math.log(softmax(s)[y])
        terms.append(target - gamma * temperature**2 * sum(a * math.log(b) for a, b in zip(q_t, q_s, strict=True)))
    assert nkd_loss(Z_S, Z_T, LABELS, gamma, temperature).item() == pytest.approx(np.mean(terms), rel=1e-9)
    found = said(NKD(gamma=gamma, temperature=temperature, weight=0.5))["nkd"]
    assert found.item() == pytest.approx(0.5 * np.mean(terms), rel=1e-9)


def test_its_rest_is_dkd_s_up_to_an_entropy() -> None:
    with_rest, without = (nkd_loss(Z_S, Z_T, LABELS, gamma, 2.0).item() for gamma in (1.0, 0.0))
    _, nckd = decoupled(Z_S / 2, Z_T / 2, torch.eye(5, dtype=torch.float64)[LABELS])
    rest = [softmax(np.delete(t, y) / 2) for t, y in zip(Z_T.numpy(), LABELS.tolist(), strict=True)]
    entropy = np.mean([-sum(p * math.log(p) for p in q) for q in rest])
    assert with_rest - without == pytest.approx(4 * (nckd.mean().item() + entropy), rel=1e-9)


def test_nkd_has_a_gradient_everywhere_even_for_a_certain_teacher() -> None:
    z = Z_S.float().requires_grad_()
    loss = nkd_loss(z, 1e3 * Z_T.float(), LABELS, 1.5, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


# wsld ----------------------------------------------------------------------------------------------------------------
def test_wsld_weighs_by_how_much_is_left_to_learn() -> None:
    terms = []
    for s, t, y in zip(Z_S.numpy(), Z_T.numpy(), LABELS.tolist(), strict=True):
        weight = 1 - math.exp(math.log(softmax(s)[y]) / (1e-7 - math.log(softmax(t)[y])))
        p_s, p_t = softmax(s / 4), softmax(t / 4)
        terms.append(-16 * weight * sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True)))
    assert wsld_loss(Z_S, Z_T, LABELS, 4.0).item() == pytest.approx(np.mean(terms), rel=1e-9)
    assert said(WSLD(alpha=2.0))["wsld"].item() == pytest.approx(2 * np.mean(terms), rel=1e-9)


def test_what_the_student_knows_counts_nothing_and_the_weight_has_no_gradient() -> None:
    knows = 50 * torch.eye(5, dtype=torch.float64)[LABELS]
    assert wsld_loss(knows, Z_T, LABELS, 4.0).item() == pytest.approx(0, abs=1e-6)
    # A teacher that is surely right: CE_t is 0, the weight 1.
    sure = 1e3 * torch.eye(5, dtype=torch.float64)[LABELS]
    log_s, log_t = log_probabilities(Z_S, 4.0), log_probabilities(sure, 4.0)
    expected = -16 * (log_t.exp() * log_s).sum(1).mean()
    assert wsld_loss(Z_S, sure, LABELS, 4.0).item() == pytest.approx(expected.item(), rel=1e-6)
    z = Z_S.clone().requires_grad_()
    wsld_loss(z, Z_T, LABELS, 4.0).backward()
    ce_s, ce_t = (-log_probabilities(rows).gather(1, LABELS[:, None]) for rows in (Z_S, Z_T))
    weight = 1 - (-ce_s / ce_t).exp()
    torch.testing.assert_close(
        z.grad, 4 * weight * ((Z_S / 4).softmax(1) - (Z_T / 4).softmax(1)) / 6, atol=1e-6, rtol=1e-5
    )


# rld -----------------------------------------------------------------------------------------------------------------
def test_rld_parts_are_those_of_the_paper() -> None:
    scd_R, mcd_R = scd(Z_S, Z_T, LABELS, 2.0), mcd(Z_S, Z_T, LABELS, 4.0)
    wrong = 0
    for b, (s, t, y) in enumerate(zip(Z_S.numpy(), Z_T.numpy(), LABELS.tolist(), strict=True)):
        sure, own = softmax(t / 2).max(), softmax(s / 2)[y]
        assert scd_R[b].item() == pytest.approx(kl([sure, 1 - sure], [own, 1 - own]), rel=1e-9)
        below = [c for c in range(5) if t[c] < t[y]]
        wrong += len(below) < 4
        expected = kl(softmax(t[below] / 4), softmax(s[below] / 4)) if below else 0.0
        assert mcd_R[b].item() == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert wrong >= 2


def test_where_the_teacher_is_right_rld_is_dkd() -> None:
    tckd, nckd = decoupled(Z_S, Z_T, torch.eye(5, dtype=torch.float64)[RIGHT])
    torch.testing.assert_close(scd(Z_S, Z_T, RIGHT, 1.0), tckd)
    torch.testing.assert_close(mcd(Z_S, Z_T, RIGHT, 1.0), nckd)


def test_rld_is_the_weighted_sum_and_warms_up() -> None:
    full = (2 * 9 * scd(Z_S, Z_T, LABELS, 3.0) + 5 * 16 * mcd(Z_S, Z_T, LABELS, 4.0)).mean().item()
    method = RLD(alpha=2.0, beta=5.0, alpha_temperature=3.0)
    for epoch, factor in ((0, 1 / 20), (9, 0.5), (19, 1.0), (100, 1.0)):
        assert said(method, epoch=epoch)["rld"].item() == pytest.approx(factor * full)
    assert said(dataclasses.replace(method, warmup_epochs=0))["rld"].item() == pytest.approx(full)


def test_a_label_that_the_teacher_puts_last_leaves_nothing_to_compare() -> None:
    z = Z_S.float().requires_grad_()
    last = Z_T.argmin(1)
    found = mcd(z, Z_T.float(), last, 4.0)
    assert torch.equal(found.detach(), torch.zeros(6))
    (scd(z, Z_T.float(), last, 1.0) + found).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


# sdd -----------------------------------------------------------------------------------------------------------------
def test_cells_are_averages_of_the_map() -> None:
    map_BDHW = torch.randn(2, 3, 4, 4, generator=MADE)
    found = cells(map_BDHW, (1, 2))
    assert found.shape == (2, 5, 3)
    torch.testing.assert_close(found[:, 0], map_BDHW.mean((2, 3)))
    for n, (i, j) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        torch.testing.assert_close(found[:, 1 + n], map_BDHW[:, :, i : i + 2, j : j + 2].mean((2, 3)))


def test_cells_in_which_the_teacher_is_right_as_it_is_not_in_the_whole_count_twice() -> None:
    s, t = (torch.randn(6, 4, 5, generator=MADE, dtype=torch.float64) * 3 for _ in range(2))
    total, doubled = 0.0, 0
    for b in range(6):
        for n in range(4):
            p_t, p_s = softmax(t[b, n].numpy() / 4), softmax(s[b, n].numpy() / 4)
            differ = (p_t.argmax() == LABELS[b].item()) != (Z_T[b].argmax().item() == LABELS[b].item())
            doubled += differ
            total += 16 * kl(p_t, p_s) * (2 if differ else 1)
    assert 0 < doubled < 24
    assert sdd_loss(s, t, Z_T, LABELS, 4.0, 2.0).item() == pytest.approx(total / 24, rel=1e-9)
    plain = kl_rows(*(log_probabilities(z.flatten(0, 1), 4.0) for z in (t, s))).mean()
    assert sdd_loss(s, t, Z_T, LABELS, 4.0, 1.0).item() == pytest.approx(16 * plain.item(), rel=1e-9)


def test_one_cell_is_kd() -> None:
    problem, given = Problem(SDD(grids=(1,), kd_weight=1.0), dtype=torch.float64), batch(dtype=torch.float64)
    terms = problem.terms(given)
    z_s, z_t = (net(given.x) for net in (problem.student, problem.teachers["teacher"]))
    assert terms["sdd"].item() == pytest.approx(soft_kl(z_s, z_t, 4.0).item(), rel=1e-9)
    finer = Problem(SDD(grids=(1, 16), kd_weight=1.0), dtype=torch.float64).terms(given)
    assert finer["sdd"].item() == terms["sdd"].item(), "finer grids than the map are left out"
    assert Problem(SDD(kd_weight=1.0), dtype=torch.float64).terms(given)["sdd"].item() != terms["sdd"].item()


def test_the_student_s_own_classifier_learns_from_cells() -> None:
    problem = Problem(SDD(), dtype=torch.float64)
    problem.terms(batch(dtype=torch.float64))["sdd"].backward()
    assert problem.student.fc.weight.grad.abs().sum() > 0
    assert not any("fc" in name or "learner" in name for name in problem.heads.state_dict())
    assert all(not p.requires_grad for p in problem.heads.parameters())


def test_sdd_refuses_what_it_cannot_read() -> None:
    net = maps()
    net.fc = torch.nn.Sequential(torch.nn.Linear(8, CLASSES))
    given = profile(net, "student", ("block-1", "pooled"))
    with pytest.raises(Refusal, match="needs a linear classifier, and that of student is Sequential"):
        SDD().heads(given, {"teacher": given})

"""Wrappers over logit methods, and methods that change what is seen: standardised, heated, mixed, untrained."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from small_nets import CLASSES, Problem, batch, maps, profile, seeded

from kdbench.batch import Out
from kdbench.losses import cross_entropy, soft_kl
from kdbench.method import Refusal, clashes
from kdbench.methods.ctkd import CTKD, curriculum, reversed_gradient
from kdbench.methods.dkd import DKD, dkd_loss
from kdbench.methods.fitnet import FitNet
from kdbench.methods.function_matching import FunctionMatching
from kdbench.methods.kd import KD
from kdbench.methods.ls import LS, standardised
from kdbench.methods.mixup import Mixup
from kdbench.methods.mlkd import MLKD
from kdbench.methods.none import NoTeacher
from kdbench.methods.random_teacher import RandomTeacher, untrained
from kdbench.methods.reverse_kl import ReverseKL
from kdbench.targets import Targets

MADE = torch.Generator().manual_seed(0)
Z_S, Z_T = (3 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
TARGETS = Targets(LABELS, 5)


def said(method, z_s=Z_S, z_t=Z_T, heads=None, views=(), epoch: int = 0):
    given = dataclasses.replace(batch(6, dtype=torch.float64, epoch=epoch), targets=TARGETS)
    learner = Out("student", z_s, views=tuple(Out("student", z) for z, _ in views))
    teacher = Out("teacher", z_t, views=tuple(Out("teacher", z) for _, z in views))
    return method.loss(learner, {"teacher": teacher}, given, heads or torch.nn.Module())


# ls ------------------------------------------------------------------------------------------------------------------
def test_rows_are_standardised_without_bias() -> None:
    for row, found in zip(Z_S.numpy(), standardised(Z_S).numpy(), strict=True):
        assert found == pytest.approx((row - np.mean(row)) / np.std(row, ddof=1), rel=1e-6)


@pytest.mark.parametrize(
    "inner", [KD(temperature=2.0, ce_weight=0.3), DKD(), ReverseKL()], ids=lambda m: type(m).__name__
)
def test_the_term_is_of_standardised_logits_and_the_cross_entropy_is_not(inner) -> None:
    found, plain = said(LS(inner)), said(inner)
    moved = said(inner, standardised(Z_S), standardised(Z_T))
    assert found.keys() == plain.keys()
    assert found["ce"].item() == plain["ce"].item()
    (name,) = found.keys() - {"ce"}
    assert found[name].item() == pytest.approx(moved[name].item(), rel=1e-12)
    assert abs(found[name].item() - plain[name].item()) > 1e-3


def test_its_default_is_the_paper_s() -> None:
    found = said(LS())
    assert found["kd"].item() == pytest.approx(9 * soft_kl(standardised(Z_S), standardised(Z_T), 2.0).item())
    assert found["ce"].item() == pytest.approx(0.1 * cross_entropy(Z_S, TARGETS).item())


def test_the_term_ignores_scale_and_shift_of_either_network() -> None:
    scale = torch.rand(6, 1, generator=MADE, dtype=torch.float64) + 0.5
    expected = said(LS())["kd"].item()
    assert said(LS(), scale * Z_S + 7, Z_T / scale - 2)["kd"].item() == pytest.approx(expected, rel=1e-5)
    assert said(LS(), scale * Z_T + 7, Z_T)["kd"].item() == pytest.approx(0, abs=1e-9)
    assert said(LS(), -Z_T, Z_T)["kd"].item() > 1


def test_views_are_standardised_as_well() -> None:
    views = [(Z_T.flip(1), Z_S.flip(0))]
    moved = [tuple(standardised(z) for z in pair) for pair in views]
    found, plain = said(LS(MLKD()), views=views), said(MLKD(), views=views)
    expected = said(MLKD(), standardised(Z_S), standardised(Z_T), views=moved)
    assert found["mlkd"].item() == pytest.approx(expected["mlkd"].item(), rel=1e-12)
    assert found["ce"].item() == plain["ce"].item()


def test_one_class_cannot_be_standardised() -> None:
    lone = dataclasses.replace(profile(Problem(KD()).student, "student", ()), classes=1)
    with pytest.raises(Refusal, match="two or more"):
        LS().heads(lone, {"teacher": lone})


# ctkd ----------------------------------------------------------------------------------------------------------------
def heated(method: CTKD, theta: float) -> torch.nn.Module:
    heads = Problem(method, dtype=torch.float64).heads
    with torch.no_grad():
        heads.theta.fill_(theta)
    return heads


def test_the_temperature_begins_near_the_middle() -> None:
    heads = Problem(CTKD()).heads
    assert heads.theta.item() == 1.0
    temperature = 1 + 20 / (1 + math.exp(-1))
    assert temperature == pytest.approx(15.62, abs=0.01)
    expected = 0.9 * soft_kl(Z_S, Z_T, temperature).item()
    assert said(CTKD(), heads=heated(CTKD(), 1.0))["kd"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [2.0, 4.0, 11.0])
def test_at_any_temperature_it_is_the_wrapped_method_at_that_one(temperature: float) -> None:
    theta = math.log((temperature - 1) / (21 - temperature))
    kd = KD(temperature=temperature)
    found = said(CTKD(), heads=heated(CTKD(), theta))
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {k: v.item() for k, v in said(kd).items()}, rel=1e-9
    )
    method = CTKD(DKD(temperature=1.0, warmup_epochs=0))
    expected = dkd_loss(Z_S, Z_T, TARGETS.dense(torch.float64), temperature, 1.0, 8.0).item()
    assert said(method, heads=heated(method, theta))["dkd"].item() == pytest.approx(expected, rel=1e-9)


def test_the_curriculum_is_a_cosine_to_whole_reversal() -> None:
    found = [curriculum(epoch, 10) for epoch in range(15)]
    assert found[4] == pytest.approx(-0.5)
    assert found[9:] == pytest.approx([-1.0] * 6)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[:10]))
    assert -0.03 < found[0] < 0


def test_the_gradient_is_reversed_and_the_value_is_not() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    found = reversed_gradient(x, -0.5)
    (3 * found).backward()
    assert found.item() == 2.0
    assert x.grad is not None
    assert x.grad.item() == -1.5


def test_a_step_of_the_temperature_makes_the_task_harder() -> None:
    method = CTKD()
    heads = heated(method, 0.0)
    before = said(method, heads=heads, epoch=20)["kd"]
    before.backward()
    with torch.no_grad():
        heads.theta -= 0.01 * heads.theta.grad.sign()
    assert said(method, heads=heads, epoch=20)["kd"].item() > before.item()
    early = heated(method, 0.0)
    said(method, heads=early)["kd"].backward()
    assert early.theta.grad.item() == pytest.approx(heads.theta.grad.item() * -curriculum(0, 10), rel=1e-9)


def test_the_student_s_gradient_is_not_reversed() -> None:
    grads = []
    for method, heads in ((CTKD(), heated(CTKD(), 0.0)), (KD(temperature=11.0), None)):
        z = Z_S.clone().requires_grad_()
        said(method, z, heads=heads, epoch=20)["kd"].backward()
        grads.append(z.grad)
    torch.testing.assert_close(*grads)


def test_a_temperature_inside_is_refused() -> None:
    for inner in (KD(), RandomTeacher(KD())):
        with pytest.raises(ValueError, match="temperature: 1"):
            CTKD(inner)
    with pytest.raises(ValueError, match="put it around ctkd"):
        CTKD(LS(KD(temperature=1.0)))
    assert CTKD(NoTeacher()) is not None


def test_standardised_logits_have_a_learnt_temperature() -> None:
    method = LS(CTKD())
    assert clashes(method) == clashes(RandomTeacher(method)) == []
    found = said(method, heads=heated(CTKD(), 0.0))
    assert found["ce"].item() == pytest.approx(0.1 * cross_entropy(Z_S, TARGETS).item())
    expected = 0.9 * soft_kl(standardised(Z_S), standardised(Z_T), 11.0)
    assert found["kd"].item() == pytest.approx(expected.item(), rel=1e-9)


# function matching ---------------------------------------------------------------------------------------------------
def test_no_label_matters() -> None:
    given = batch(dtype=torch.float64)
    other = dataclasses.replace(given, targets=Targets(given.labels.flip(0), CLASSES))
    found = []
    for one in (given, other):
        one.rng.manual_seed(3)
        found.append(Problem(FunctionMatching(), dtype=torch.float64).terms(one))
    assert found[0].keys() == {"function_matching"}
    assert found[0]["function_matching"].item() == found[1]["function_matching"].item()


def test_student_and_teacher_see_the_pixels_of_mixup() -> None:
    one, other = FunctionMatching(alpha=0.5).batch(batch()), Mixup(alpha=0.5).batch(batch())
    assert torch.equal(one.x, other.x)
    assert not torch.equal(one.x, batch().x)
    problem = Problem(FunctionMatching(alpha=0.5, weight=2.0), dtype=torch.float64)
    given = problem.method.batch(batch(dtype=torch.float64))
    expected = 2 * soft_kl(problem.student(given.x), problem.teachers["teacher"](given.x), 1.0)
    assert problem.terms(batch(dtype=torch.float64))["function_matching"].item() == pytest.approx(expected.item())


def test_without_mixing_it_is_kd_without_labels() -> None:
    method = FunctionMatching(temperature=3.0, alpha=0.0)
    expected = Problem(KD(temperature=3.0, ce_weight=0.0, kd_weight=1.0)).terms(batch())["kd"]
    assert Problem(method).terms(batch())["function_matching"].item() == expected.item()


# random teacher ------------------------------------------------------------------------------------------------------
def test_fresh_weights_are_of_the_same_model_and_of_no_training() -> None:
    net = seeded(maps).requires_grad_(False)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        one, other = untrained(net), untrained(net)
    for name, value in kept.items():
        assert torch.equal(net.state_dict()[name], value), "the trained teacher is as it was"
        assert one.state_dict()[name].shape == value.shape
        assert not torch.equal(one.state_dict()[name], value)
        assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    assert not any(p.requires_grad for p in one.parameters())


def test_statistics_and_types_are_fresh_and_kept() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)).double()
    net[0](5 * torch.randn(8, 3, dtype=torch.float64) + 2)
    found = untrained(net)
    assert found[0].running_mean.abs().sum() == 0
    assert found[0].running_mean.dtype == found[1].weight.dtype == torch.float64
    assert net[0].running_mean.abs().sum() > 0


def test_the_student_learns_from_the_copy_alone() -> None:
    problem, given = Problem(RandomTeacher(KD(temperature=2.0)), dtype=torch.float64), batch(dtype=torch.float64)
    problem.heads.train()
    terms = problem.terms(given)
    copied = problem.heads.untrained[0]
    assert not copied.training
    expected = 0.9 * soft_kl(problem.student(given.x), copied(given.x), 2.0)
    assert terms["kd"].item() == pytest.approx(expected.item(), rel=1e-12)
    with torch.no_grad():
        for p in problem.teachers["teacher"].parameters():
            p.zero_()
    assert problem.terms(given)["kd"].item() == terms["kd"].item()


def test_what_it_cannot_offer_is_refused() -> None:
    with pytest.raises(Refusal, match="features of its teacher"):
        RandomTeacher(FitNet()).needs()
    net = maps()
    net.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(Refusal, match=r"the model itself \(Net\)"):
        untrained(net)

"""Methods without the pair's teacher, and a stochastic one: limiting cases, against loops in numpy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_nets import CLASSES, EXAMPLES, Problem, batch, profile

from kdbench.batch import Out
from kdbench.losses import cross_entropy, soft_kl
from kdbench.method import Plan, Refusal, Stage
from kdbench.methods.cs_kd import CSKD, class_wise
from kdbench.methods.ps_kd import PSKD, remembered
from kdbench.methods.sgkd import SGKD, guided
from kdbench.methods.tf_kd import TfKD, released, virtual
from kdbench.targets import Targets

MADE = torch.Generator().manual_seed(0)
Z_S, Z_T = (3 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 4, 2, 2, 1, 2])
TARGETS = Targets(LABELS, 5)
CE = cross_entropy(Z_S, TARGETS).item()


def softmax(z) -> np.ndarray:
    e = np.array([math.exp(value) for value in z])
    return e / e.sum()


def kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def said(method, z_s=Z_S, teachers=None, heads=None, role="student", **changes):
    given = dataclasses.replace(batch(6, dtype=torch.float64), targets=TARGETS, **changes)
    return method.loss(Out(role, z_s), teachers or {}, given, heads or torch.nn.Module())


# tf-kd ---------------------------------------------------------------------------------------------------------------
def test_the_virtual_teacher_is_right() -> None:
    u = virtual(Z_S, LABELS, 0.9).exp()
    for b, y in enumerate(LABELS):
        assert u[b].tolist() == pytest.approx([0.9 if c == y else 0.025 for c in range(5)])


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_its_softened_answer_is_learnt(temperature: float) -> None:
    terms = []
    for z, y in zip(Z_S.numpy(), LABELS.tolist(), strict=True):
        u = np.array([0.99 if c == y else 0.0025 for c in range(5)]) ** (1 / temperature)
        terms.append(temperature**2 * kl(u / u.sum(), softmax(z / temperature)))
    found = said(TfKD(alpha=0.3, temperature=temperature))
    assert found["tf_kd"].item() == pytest.approx(0.3 * np.mean(terms), rel=1e-9)
    assert found["ce"].item() == pytest.approx(0.7 * CE, rel=1e-12)


def test_at_temperature_one_it_is_label_smoothing() -> None:
    """With a = 1 - eps + eps / C the virtual teacher is the smoothed label: equal gradients."""
    grads = []
    for loss in (
        lambda z: said(TfKD(alpha=1.0, temperature=1.0, correct=0.92), z)["tf_kd"],
        lambda z: cross_entropy(z, TARGETS.smoothed(0.1)),
    ):
        z = Z_S.clone().requires_grad_()
        loss(z).backward()
        grads.append(z.grad)
    torch.testing.assert_close(*grads)


def test_the_released_form_is_all_but_uniform() -> None:
    terms = []
    for z, y in zip(Z_S.numpy(), LABELS.tolist(), strict=True):
        q = softmax([0.99 / 20 if c == y else 0.0025 / 20 for c in range(5)])
        assert max(q) < 0.21
        terms += [a * math.log(a / b) for a, b in zip(q, softmax(z), strict=True)]
    assert released(Z_S, LABELS, 0.99, 20.0).item() == pytest.approx(100 * np.mean(terms), rel=1e-9)
    assert said(TfKD(as_released=True))["tf_kd"].item() == pytest.approx(10 * np.mean(terms), rel=1e-9)


def test_the_self_form_learns_from_its_own_model() -> None:
    method = TfKD(form="self", alpha=0.4, temperature=3.0)
    first, second = Stage({"pretrained": ()}), Stage({"student": ("pretrained",)})
    assert method.plan(("teacher", "student")) == Plan((first, second), copies={"pretrained": "student"})
    found = said(method, teachers={"pretrained": Out("pretrained", Z_T)})
    assert found["tf_kd"].item() == pytest.approx(0.4 * soft_kl(Z_S, Z_T, 3.0).item())
    assert found["ce"].item() == pytest.approx(0.6 * CE)
    alone = said(method, role="pretrained")
    assert alone.keys() == {"ce"}
    assert alone["ce"].item() == CE
    assert TfKD().plan(("teacher", "student")) == Plan((Stage({"student": ()}),))
    with pytest.raises(ValueError, match="virtual form"):
        TfKD(form="self", as_released=True)


# cs-kd ---------------------------------------------------------------------------------------------------------------
def test_examples_agree_with_the_others_of_their_class() -> None:
    p, terms = [softmax(z / 4) for z in Z_S.numpy()], []
    for b in range(6):
        partners = [a for a in range(6) if a != b and LABELS[a] == LABELS[b]]
        if partners:
            terms.append(16 * np.mean([kl(p[a], p[b]) for a in partners]))
    assert len(terms) == 3
    assert class_wise(Z_S, LABELS, 4.0).item() == pytest.approx(np.mean(terms), rel=1e-9)
    found = said(CSKD(weight=3.0))
    assert found["cs_kd"].item() == pytest.approx(3 * np.mean(terms), rel=1e-9)
    assert found["ce"].item() == CE


def test_partners_have_no_gradient() -> None:
    z = Z_S.clone().requires_grad_()
    class_wise(z, LABELS, 4.0).backward()
    p, expected = (Z_S / 4).softmax(1), torch.zeros_like(Z_S)
    for b in (2, 3, 5):
        partners = [a for a in (2, 3, 5) if a != b]
        expected[b] = 4 * (p[b] - p[partners].mean(0)) / 3
    torch.testing.assert_close(z.grad, expected)


def test_without_partners_or_with_equal_ones_there_is_nothing_to_learn() -> None:
    z = Z_S[:5].clone().requires_grad_()
    alone = class_wise(z, torch.arange(5), 4.0)
    alone.backward()
    assert alone.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))
    assert class_wise(Z_S[:1].expand(6, 5), LABELS, 4.0).item() == pytest.approx(0, abs=1e-12)


# ps-kd ---------------------------------------------------------------------------------------------------------------
def test_the_first_epoch_is_plain_cross_entropy() -> None:
    problem = Problem(PSKD(), dtype=torch.float64)
    terms = said(PSKD(), heads=problem.heads, epochs=4)
    assert sum(terms.values()).item() == pytest.approx(CE, rel=1e-12)
    assert terms["ps_kd"].item() == pytest.approx(0.2 * CE, rel=1e-12)


def test_the_past_answer_of_the_same_example_softens_its_label() -> None:
    method, heads, index = PSKD(), Problem(PSKD(), dtype=torch.float64).heads, torch.tensor([7, 0, 39, 5, 11, 2])
    said(method, heads=heads, index_B=index, epoch=0, epochs=4)
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    given = {"index_B": index[order], "targets": Targets(LABELS[order], 5), "epoch": 1, "epochs": 4}
    found = method.loss(Out("student", Z_T[order]), {}, dataclasses.replace(batch(6), **given), heads)
    total = []
    for b, y in enumerate(LABELS.tolist()):
        past, now = softmax(Z_S[b].numpy()), softmax(Z_T[b].numpy())
        target = [0.4 * past[c] + 0.6 * (c == y) for c in range(5)]
        total.append(-sum(t * math.log(q) for t, q in zip(target, now, strict=True)))
    assert sum(found.values()).item() == pytest.approx(np.mean(total), rel=1e-9)
    memory = heads.memory_NC
    assert memory.shape == (EXAMPLES, CLASSES)
    torch.testing.assert_close(memory[index], Z_T.softmax(1))
    assert memory.sum().item() == pytest.approx(6)
    assert not memory.requires_grad


def test_an_example_without_a_past_keeps_its_label() -> None:
    memory = torch.stack([torch.zeros(3), torch.tensor([0.2, 0.3, 0.5])])
    targets = torch.eye(3)[:2]
    torch.testing.assert_close(remembered(memory, targets), torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5]]))


def test_a_share_of_nothing_is_no_method() -> None:
    problem = Problem(PSKD(alpha=0.0), dtype=torch.float64)
    for epoch in range(2):
        terms = said(PSKD(alpha=0.0), heads=problem.heads, epoch=epoch)
        assert terms["ce"].item() == CE
        assert terms["ps_kd"].item() == 0


# sgkd ----------------------------------------------------------------------------------------------------------------
S_BD, V_BD = (torch.randn(4, 7, generator=MADE, dtype=torch.float64) for _ in range(2))
DRAWS_KBD = V_BD + 0.5 * torch.randn(30, 4, 7, generator=MADE, dtype=torch.float64)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9])
def test_the_student_picks_the_draws_near_to_it(quantile: float) -> None:
    draws, total = DRAWS_KBD.numpy(), []
    for b, s in enumerate(S_BD.numpy()):
        shares = softmax([float(s @ draws[k, b]) / 5 for k in range(30)])
        kept = [k for k in range(30) if shares[k] >= np.quantile(shares, quantile)]
        assert len(kept) == {0.0: 30, 0.5: 15, 0.9: 3}[quantile]
        target = sum(shares[k] * draws[k, b] for k in kept) / sum(shares[k] for k in kept)
        total += list((s - target) ** 2)
    assert guided(S_BD, DRAWS_KBD, 5.0, quantile).item() == pytest.approx(np.mean(total), rel=1e-9)


def test_equal_draws_or_one_are_feature_regression() -> None:
    expected = (S_BD - V_BD).square().mean().item()
    assert guided(S_BD, V_BD.expand(30, 4, 7), 5.0, 0.9).item() == pytest.approx(expected, rel=1e-9)
    one = (S_BD - DRAWS_KBD[0]).square().mean().item()
    assert guided(S_BD, DRAWS_KBD[:1], 5.0, 0.9).item() == pytest.approx(one, rel=1e-9)
    nearest = DRAWS_KBD.gather(0, (S_BD * DRAWS_KBD).sum(2).argmax(0)[None, :, None].expand(1, 4, 7))[0]
    found = guided(S_BD, DRAWS_KBD[:], 5.0, 1.0).item()
    assert found == pytest.approx((S_BD - nearest).square().mean().item(), rel=1e-9)


def test_the_choice_has_a_gradient() -> None:
    s = S_BD.clone().requires_grad_()
    guided(s, DRAWS_KBD, 5.0, 0.5).backward()
    assert torch.autograd.gradcheck(lambda s: guided(s, DRAWS_KBD, 5.0, 0.5), (s,))
    without = 2 * (S_BD - V_BD) / S_BD.numel()
    assert not torch.allclose(s.grad, without, atol=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_draws_are_dropout_of_the_teacher_s_feature(rate: float) -> None:
    problem, given = Problem(SGKD(dropout=rate, draws=3, weight=2.0), dtype=torch.float64), batch(dtype=torch.float64)
    learner, teachers = problem.outs(given.x)
    v_BD, s_BD = teachers["teacher"].pooled, problem.heads(learner.pooled)
    uniform = torch.rand((3, *v_BD.shape), generator=torch.Generator().manual_seed(1))  # the seed of `batch`
    draws = torch.where(uniform < rate, torch.zeros_like(v_BD), v_BD / (1 - rate))
    expected = guided(s_BD, draws, 5.0, 0.9) if rate else (s_BD - v_BD).square().mean()
    assert problem.terms(given)["sgkd"].item() == pytest.approx(2 * expected.item(), rel=1e-9)


def test_equal_widths_need_no_layer_and_several_teachers_are_refused() -> None:
    net = Problem(SGKD()).student
    one = profile(net, "student", ("pooled",))
    assert not list(SGKD().heads(one, {"teacher": one}).parameters())
    with pytest.raises(Refusal, match="student has 2"):
        SGKD().heads(one, {"a": one, "b": one})

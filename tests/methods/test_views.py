"""Methods that see every image twice: levels of logits, correlations with a pruned teacher."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from small_nets import Problem, batch, maps, profile, seeded

from kdbench.batch import Out
from kdbench.losses import cross_entropy, soft_kl
from kdbench.method import Refusal
from kdbench.methods.mlkd import MLKD, levels
from kdbench.methods.r2kd import R2KD, pruned, rank_distance, soft_ranks, value_distance
from kdbench.targets import Targets

MADE = torch.Generator().manual_seed(0)
Z_S, Z_T, Z_S2, Z_T2 = (3 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(4))
TARGETS = Targets(torch.tensor([0, 4, 2, 2, 1, 3]), 5)
P_S, P_T = (z.softmax(1).numpy() for z in (Z_S, Z_T))


def seen_twice(problem: Problem, dtype=torch.float64):
    """A batch with a second view, and what both networks say of both."""
    given = batch(dtype=dtype)
    given = dataclasses.replace(given, views=(given.x.flip(3) + 0.1,))

    def out(net, role):
        return Out(role, net(given.x), views=(Out(role, net(given.views[0])),))

    return given, out(problem.student, "student"), {"teacher": out(problem.teachers["teacher"], "teacher").detach()}


@pytest.mark.parametrize("method", [MLKD(), R2KD()], ids=lambda m: type(m).__name__)
def test_they_ask_for_two_views(method) -> None:
    assert method.needs().views == 2


# mlkd ----------------------------------------------------------------------------------------------------------------
def test_the_levels_are_examples_classes_and_the_batch() -> None:
    examples, classes, among = levels(Z_S, Z_T, 1.0)
    assert examples.item() == pytest.approx(soft_kl(Z_S, Z_T, 1.0).item())
    total = 0.0
    for c in range(5):
        for d in range(5):
            total += sum(P_T[b, c] * P_T[b, d] - P_S[b, c] * P_S[b, d] for b in range(6)) ** 2
    assert classes.item() == pytest.approx(total / 5, rel=1e-9)
    total = 0.0
    for a in range(6):
        for b in range(6):
            total += sum(P_T[a, c] * P_T[b, c] - P_S[a, c] * P_S[b, c] for c in range(5)) ** 2
    assert among.item() == pytest.approx(total / 6, rel=1e-9)


def test_levels_vanish_for_equal_logits_and_ignore_the_order_of_the_batch() -> None:
    assert [part.item() for part in levels(Z_T, Z_T, 3.0)] == [0, 0, 0]
    order = torch.randperm(6, generator=MADE)
    torch.testing.assert_close(levels(Z_S[order], Z_T[order], 3.0), levels(Z_S, Z_T, 3.0))


def test_mlkd_sums_views_and_temperatures() -> None:
    learner = Out("student", Z_S, views=(Out("student", Z_S2),))
    teacher = Out("teacher", Z_T, views=(Out("teacher", Z_T2),))
    given = dataclasses.replace(batch(6, dtype=torch.float64), targets=TARGETS)
    method = MLKD(temperatures=(1.0, 4.0), ce_weight=0.5, kd_weight=2.0)
    found = method.loss(learner, {"teacher": teacher}, given, torch.nn.Module())
    pairs = ((Z_S, Z_T), (Z_S2, Z_T2))
    expected = sum(part.item() for s, t in pairs for kept in (1.0, 4.0) for part in levels(s, t, kept))
    assert found["mlkd"].item() == pytest.approx(2 * expected, rel=1e-9)
    ce = cross_entropy(Z_S, TARGETS) + cross_entropy(Z_S2, TARGETS)
    assert found["ce"].item() == pytest.approx(0.5 * ce.item(), rel=1e-12)


def test_mlkd_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match="at least one"):
        MLKD(temperatures=())


# r2kd: values --------------------------------------------------------------------------------------------------------
def cosine(a, b) -> float:
    return abs(sum(x * y for x, y in zip(a, b, strict=True))) / (np.linalg.norm(a) * np.linalg.norm(b))


def test_values_correlate_over_classes_and_examples() -> None:
    rows = np.mean([1 - cosine(P_S[b], P_T[b]) for b in range(6)])
    columns = np.mean([1 - cosine(P_S[:, c], P_T[:, c]) for c in range(5)])
    p_s, p_t = Z_S.softmax(1), Z_T.softmax(1)
    assert value_distance(p_s, p_t).item() == pytest.approx(rows + columns, rel=1e-9)
    assert value_distance(p_t, p_t).item() == pytest.approx(0, abs=1e-12)
    assert value_distance(3 * p_s, p_t).item() == pytest.approx(rows + columns, rel=1e-9)
    assert value_distance(p_s, -p_t).item() == pytest.approx(rows + columns, rel=1e-9)


# r2kd: ranks ---------------------------------------------------------------------------------------------------------
def test_soft_ranks_tend_to_ranks() -> None:
    expected = stats.rankdata(Z_S.numpy(), axis=1)
    assert soft_ranks(Z_S, 1e-4).numpy() == pytest.approx(expected, abs=1e-6)
    by_hand = [0.5 + sum(1 / (1 + np.exp(-(a - b) / 0.7)) for b in Z_S[0].numpy()) for a in Z_S[0].numpy()]
    assert soft_ranks(Z_S, 0.7)[0].numpy() == pytest.approx(by_hand, rel=1e-9)
    torch.testing.assert_close(soft_ranks(Z_S, 0.7).sum(1), torch.full((6,), 15.0, dtype=torch.float64))


def test_rank_distance_is_spearman_s() -> None:
    expected = 1 - np.mean([stats.spearmanr(Z_S[b], Z_T[b]).statistic for b in range(6)])
    assert rank_distance(Z_S, Z_T, None).item() == pytest.approx(expected, abs=1e-6)
    assert rank_distance(Z_S, Z_T, 1e-4).item() == pytest.approx(expected, abs=1e-6)
    for width in (None, 0.1, 1.0):
        assert rank_distance(Z_T, Z_T, width).item() == pytest.approx(0, abs=1e-6)
    assert rank_distance(-Z_T, Z_T, None).item() == pytest.approx(2, abs=1e-6)


def test_only_the_soft_term_has_a_gradient_and_it_sorts_the_student() -> None:
    z = Z_S.clone().requires_grad_()
    assert not rank_distance(z, Z_T, None).requires_grad
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        rank_distance(z.log_softmax(1), Z_T, 0.3).backward()
        optimizer.step()
    before, after = (rank_distance(rows.detach(), Z_T, None).item() for rows in (Z_S, z))
    assert after < before / 3


# r2kd: the pruned teacher --------------------------------------------------------------------------------------------
def test_the_smallest_weights_of_each_layer_are_gone() -> None:
    net, kept = seeded(maps), seeded(maps)
    found = pruned(net, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), kept.parameters(), strict=True))
    for name, layer in net.named_modules():
        if not isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            continue
        weight, copied = layer.weight.detach(), found.get_submodule(name).weight
        gone = copied == 0
        assert gone.sum() == round(0.3 * weight.numel())
        assert torch.equal(copied[~gone], weight[~gone])
        assert weight[gone].abs().max() < weight[~gone].abs().min()
        assert torch.equal(found.get_submodule(name).bias, layer.bias)
    assert all(torch.equal(a, b) for a, b in zip(pruned(net, 0.0).parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("as_released", [False, True])
def test_r2kd_is_the_sum_over_both_views(as_released: bool) -> None:
    method = R2KD(temperature=2.0, value_weight=3.0, rank_weight=0.5, prune=0.4, share=0.6, as_released=as_released)
    problem = Problem(method, dtype=torch.float64)
    given, learner, teachers = seen_twice(problem)
    found = method.loss(learner, teachers, given, problem.heads.train())
    copied = pruned(problem.teachers["teacher"], 0.4)
    expected = 0.0
    for x in (given.x, given.views[0]):
        z_t = 0.6 * problem.teachers["teacher"](x) + 0.4 * copied(x)
        log_s, log_t = ((z / 2).log_softmax(1).detach() for z in (problem.student(x), z_t))
        expected += 3 * 4 * value_distance(log_s.exp(), log_t.exp()).item()
        expected += 0.5 * rank_distance(log_s, log_t, None if as_released else 0.1).item()
    assert found["r2kd"].item() == pytest.approx(expected, rel=1e-9)
    assert found["ce"].item() == cross_entropy(learner.rows, given.targets).item(), "labels on the first view alone"


def test_without_pruning_the_share_does_not_matter() -> None:
    values = []
    for share in (0.0, 0.7, 1.0):
        problem = Problem(R2KD(prune=0.0, share=share), dtype=torch.float64)
        given, learner, teachers = seen_twice(problem)
        values.append(problem.method.loss(learner, teachers, given, problem.heads)["r2kd"].item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-9)


def test_the_released_rank_term_moves_nobody() -> None:
    grads = []
    for method in (R2KD(as_released=True), R2KD(rank_weight=0.0), R2KD()):
        problem = Problem(method, dtype=torch.float64)
        given, learner, teachers = seen_twice(problem)
        method.loss(learner, teachers, given, problem.heads)["r2kd"].backward()
        grads.append(problem.student.fc.weight.grad)
    assert torch.equal(grads[0], grads[1])
    assert not torch.equal(grads[0], grads[2])


def test_two_classes_have_no_ranks() -> None:
    few = dataclasses.replace(profile(seeded(maps), "student", ()), classes=2)
    with pytest.raises(Refusal, match="three or more"):
        R2KD().heads(few, {"teacher": few})

"""Wrappers: the plans they make, the batches they change, the weights they give; and what wraps what."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from small_nets import CLASSES, EXAMPLES, Problem, batch

from kdbench.batch import Probe
from kdbench.losses import cross_entropy
from kdbench.method import Method, Needs, Plan, Refusal, Stage, clashes
from kdbench.methods.active import Active, uncertainty
from kdbench.methods.born_again import BornAgain
from kdbench.methods.chain import Chain
from kdbench.methods.crd import CRD
from kdbench.methods.dkd import DKD
from kdbench.methods.fitnet import FitNet
from kdbench.methods.kd import KD
from kdbench.methods.mixup import Mixup, mixed, symmetric_beta
from kdbench.methods.mutual import Mutual
from kdbench.methods.none import NoTeacher
from kdbench.targets import Targets

WRAPPERS = (Chain, Mutual, BornAgain, Mixup, Active)


# chain ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("roles", "line"),
    [
        (("teacher", "student", "ta"), ["teacher", "ta", "student"]),
        (("teacher", "ta", "student", "ta2", "ta10"), ["teacher", "ta", "ta2", "ta10", "student"]),
        (("teacher", "student", "ta2", "ta"), ["teacher", "ta2", "ta", "student"]),
        (("teacher", "student", "peer", "tax", "beta"), ["teacher", "ta", "student"]),
    ],
)
def test_chain_teaches_from_link_to_link(roles: tuple[str, ...], line: list[str]) -> None:
    plan = Chain(share=0.5).plan(roles)
    assert plan == Plan(tuple(Stage({b: (a,)}, 0.5) for a, b in itertools.pairwise(line)))
    assert plan.frozen == ("teacher",)


def test_chain_uses_the_wrapped_method() -> None:
    given = batch()
    assert Problem(Chain(FitNet())).terms(given).keys() == {"ce", "fitnet"}
    assert Chain(FitNet()).needs() == FitNet().needs()


# mutual --------------------------------------------------------------------------------------------------------------
def test_mutual_takes_the_pair_s_peer_or_another_student() -> None:
    stage = Stage({"student": ("peer",), "peer": ("student",)})
    assert Mutual().plan(("teacher", "student")) == Plan((stage,), copies={"peer": "student"})
    assert Mutual().plan(("teacher", "student", "peer")) == Plan((stage,))
    assert Mutual().plan(("teacher", "student")).frozen == ()


def test_mutual_is_the_paper_s_loss() -> None:
    problem, given = Problem(Mutual(), dtype=torch.float64), batch(dtype=torch.float64)
    terms = problem.terms(given)
    p_1, p_2 = problem.student(given.x).softmax(1), problem.teachers["peer"](given.x).softmax(1)
    kl = (p_2 * (p_2 / p_1).log()).sum(1).mean()
    assert terms["kd"].item() == pytest.approx(kl.item(), rel=1e-9)
    assert terms["ce"].item() == pytest.approx(
        -(given.targets.dense(p_1.dtype) * p_1.log()).sum(1).mean().item(), rel=1e-9
    )


# born-again ----------------------------------------------------------------------------------------------------------
def test_generations_follow_each_other() -> None:
    plan = BornAgain(generations=2).plan(("teacher", "student"))
    assert plan.stages == (
        Stage({"generation0": ()}),
        Stage({"generation1": ("generation0",)}),
        Stage({"student": ("generation1",)}),
    )
    assert plan.copies == {"generation0": "student", "generation1": "student"}
    assert plan.answer == ("student",)
    assert plan.frozen == ()


def test_no_generation_is_the_student_without_a_teacher() -> None:
    assert BornAgain(generations=0).plan(("teacher", "student")) == NoTeacher().plan(("teacher", "student"))


@pytest.mark.parametrize("inner", [KD(), FitNet(), CRD(negatives=8), DKD()], ids=lambda m: type(m).__name__)
def test_the_first_generation_learns_from_labels_alone(inner: Method) -> None:
    method, given = BornAgain(inner, generations=0), batch()
    problem = Problem(method)
    terms = problem.terms(given)
    assert terms.keys() == {"ce"}
    assert terms["ce"].item() == cross_entropy(problem.student(given.x), given.targets).item()
    assert not list(problem.heads.parameters())
    assert len(Problem(BornAgain(inner)).terms(given)) == 2


# mixup ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 4.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    uniform = torch.rand(4, 50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = symmetric_beta(alpha, uniform).numpy()
    assert np.isfinite(drawn).all()
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    low = drawn[drawn < 0.5]  # above, numbers near 1 are rounded to it: small alphas put real mass there
    assert stats.kstest(low, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 0.01
    assert stats.kstest(low, lambda x: 2 * stats.beta(1.2 * alpha, 1.2 * alpha).cdf(x)).pvalue < 1e-4  # it can tell


@pytest.mark.parametrize("corner", list(itertools.product([0.0, 1 - 2**-53], repeat=4)))
def test_lambda_is_a_fraction_even_for_extreme_draws(corner: tuple[float, ...]) -> None:
    value = symmetric_beta(0.1, torch.tensor(corner, dtype=torch.float64))
    assert 0 <= value.item() <= 1


def test_one_lambda_mixes_images_labels_and_views_alike() -> None:
    given = batch()
    given = dataclasses.replace(given, views=(2 * given.x,))
    found = Mixup(alpha=4.0).batch(given)
    assert found.x.shape == given.x.shape
    assert found.x.dtype == given.x.dtype
    torch.testing.assert_close(found.views[0], 2 * found.x)
    # Solve for lambda and the partner from the first image; the same must explain everything else.
    solutions = []
    for b in range(8):
        for other in range(8):
            if other != b and not torch.allclose(found.x[b], given.x[b]):  # a permutation may leave some in place
                away = given.x[b] - given.x[other]
                fraction = ((found.x[b] - given.x[other]) * away).sum() / (away * away).sum()
                if torch.allclose(found.x[b], fraction * given.x[b] + (1 - fraction) * given.x[other], atol=1e-5):
                    solutions.append((b, other, fraction))
    assert len({other for _, other, _ in solutions}) == len(solutions) >= 4
    fraction, dense = solutions[0][2], given.targets.dense()
    for b, other, again in solutions:
        assert again.item() == pytest.approx(fraction.item(), abs=1e-5)
        expected = fraction * dense[b] + (1 - fraction) * dense[other]
        torch.testing.assert_close(found.targets.dense()[b], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.targets.dense().sum(1), torch.ones(8))
    assert torch.equal(found.index_B, given.index_B)


def test_the_partners_are_a_permutation_and_change_from_batch_to_batch() -> None:
    given = batch()
    eye = dataclasses.replace(given, targets=Targets(torch.arange(8), 8))
    rows = [Mixup(alpha=4.0).batch(eye).targets.dense() for _ in range(5)]
    for row in rows:
        torch.testing.assert_close(row.sum(0), torch.ones(8))
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 5


def test_mixing_is_linear() -> None:
    values, other = torch.randn(4, 3), torch.tensor([1, 0, 3, 2])
    assert torch.equal(mixed(values, other, torch.tensor(1.0)), values)
    assert torch.equal(mixed(values, other, torch.tensor(0.0)), values[other])


def test_without_alpha_nothing_is_mixed_nor_drawn() -> None:
    given = batch()
    state = given.rng.get_state()
    assert Mixup(alpha=0.0).batch(given) is given
    assert torch.equal(given.rng.get_state(), state)


def test_teacher_and_student_see_the_same_mixed_pixels() -> None:
    problem, given = Problem(Mixup(KD())), batch()
    terms = problem.terms(given)
    given.rng.manual_seed(1)
    again = problem.method.batch(batch())
    learner, teachers = problem.outs(again.x)
    expected = KD().loss(learner, teachers, again, problem.heads)
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in expected.items()}
    assert not again.targets.hard


@pytest.mark.parametrize("inner", [DKD(), Chain(DKD()), Active(DKD())], ids=lambda m: type(m).__name__)
def test_methods_that_need_hard_labels_are_not_mixed(inner: Method) -> None:
    with pytest.raises(Refusal, match="hard labels"):
        Mixup(inner).needs()
    assert Chain(Mixup(KD())).needs() == Needs(categorical=True, mixable=True)


# active --------------------------------------------------------------------------------------------------------------
def test_weights_follow_the_lack_of_confidence() -> None:
    p = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]])
    expected = torch.tensor([0.1, 0.5, 2 / 3])
    torch.testing.assert_close(uncertainty(p.log(), 1.0, 0.0), expected)
    torch.testing.assert_close(uncertainty(p.log(), 2.0, 0.25), expected**2 + 0.25)
    torch.testing.assert_close(uncertainty(p.log(), 0.0, 0.1), torch.full((3,), 1.1))


def test_active_samples_from_the_probe() -> None:
    method = Active(FitNet(), gamma=2.0, floor=0.5)
    assert method.needs() == dataclasses.replace(FitNet().needs(), probe=True, categorical=True)
    logits = torch.randn(EXAMPLES, CLASSES, generator=torch.Generator().manual_seed(0))
    weights = method.sample(Probe(logits, torch.zeros(EXAMPLES, dtype=torch.int64), 0, 10))
    assert weights is not None
    torch.testing.assert_close(weights, (1 - logits.softmax(1).max(1).values) ** 2 + 0.5)
    assert weights.argmax() == logits.softmax(1).max(1).values.argmin()


# wrappers over wrappers ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(WRAPPERS, repeat=2)), ids=lambda c: c.__name__)
def test_two_wrappers_that_set_the_same_member_are_refused(outer, inner) -> None:
    sets_plan = {Chain, Mutual, BornAgain}
    expected = ["plan"] if {outer, inner} <= sets_plan else []
    expected += ["sample"] if outer is inner is Active else []
    expected += ["loss"] if outer is inner is BornAgain else []
    found = clashes(outer(over=inner()))
    assert len(found) == len(expected)
    for sentence, member in zip(found, expected, strict=True):
        assert f"`{member}`" in sentence


def test_a_tower_of_wrappers_delegates_all_the_way() -> None:
    tower = Chain(Active(Mixup(FitNet(weight=7.0))))
    assert clashes(tower) == []
    assert tower.needs() == Needs(("block2",), ("block2",), probe=True, categorical=True, mixable=True)
    problem, given = Problem(tower), batch()
    assert problem.terms(given).keys() == {"ce", "fitnet"}
    assert not tower.batch(batch()).targets.hard
    assert tower.sample(Probe(torch.zeros(3, CLASSES), torch.zeros(3, dtype=torch.int64), 0, 1)) is not None
    assert tower == Chain(Active(Mixup(FitNet(weight=7.0))))
    assert hash(tower) != hash(Chain(Active(Mixup(FitNet(weight=8.0)))))

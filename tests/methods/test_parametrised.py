"""Students whose weights are functions of others while they learn: the same function before and after, what is left."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_nets import Net, Problem, batch, maps, seeded, tokens
from torch import nn

from kdbench.method import Rates, Refusal
from kdbench.methods._parametrised import Power, fold, register
from kdbench.methods.kd import KD
from kdbench.methods.low_rank import LowRank, factors, product
from kdbench.methods.mpo_share import MPOShare
from kdbench.methods.powerprop import PowerProp, prune

MADE = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, 8, 8, generator=MADE)


def trained(problem: Problem, steps: int = 5) -> None:
    optimizer = torch.optim.SGD([*problem.student.parameters(), *problem.heads.parameters()], lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        torch.stack(list(problem.terms(problem.batch(seed=step)).values())).sum().backward()
        optimizer.step()


def deployed(problem: Problem) -> nn.Module:
    return problem.method.deploy(copy.deepcopy(problem.student), copy.deepcopy(problem.heads)).eval()


# powerprop -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 4.0])
def test_the_power_against_a_loop_and_its_gradient(alpha: float) -> None:
    u = torch.randn(3, 4, generator=MADE, dtype=torch.float64)
    power = Power(alpha)
    phi = power.right_inverse(u).clone().requires_grad_()
    for index in np.ndindex(3, 4):
        value = u[index].item()
        assert phi[index].item() == pytest.approx(np.sign(value) * abs(value) ** (1 / alpha))
    torch.testing.assert_close(power(phi), u, rtol=1e-12, atol=1e-15)
    (grad,) = torch.autograd.grad(power(phi).sum(), phi)
    torch.testing.assert_close(grad, alpha * phi.abs().pow(alpha - 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("alpha", "gradient"), [(1.0, 1.0), (1.5, 0.0), (2.0, 0.0), (4.0, 0.0)])
def test_zero_is_a_fixed_point_of_powers_alone(alpha: float, gradient: float) -> None:
    phi = torch.zeros(2, requires_grad=True)
    (grad,) = torch.autograd.grad(Power(alpha)(phi).sum(), phi)
    assert grad.tolist() == pytest.approx([gradient] * 2, abs=1e-6)


def test_a_power_of_one_is_the_wrapped_method_to_the_bit() -> None:
    plain, powered = Problem(KD()), Problem(PowerProp(alpha=1.0))
    for problem in (plain, powered):
        trained(problem)
    weights = plain.student.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in deployed(powered).state_dict().items())


def test_powers_begin_as_the_student_and_learn_otherwise() -> None:
    plain, powered = Problem(KD()), Problem(PowerProp(alpha=3.0))
    torch.testing.assert_close(powered.student(X), plain.student(X))
    for problem in (plain, powered):
        trained(problem)
    assert (powered.student(X) - plain.student(X)).abs().max() > 1e-4
    torch.testing.assert_close(deployed(powered)(X), powered.student(X))


def test_what_is_deployed_has_the_student_s_own_keys_and_training_goes_on() -> None:
    problem = Problem(PowerProp(alpha=2.0))
    found = deployed(problem)
    assert list(found.state_dict()) == list(seeded(maps).state_dict())
    assert type(found.blocks[0][0]).__name__ == "Conv2d"
    before = problem.student(X)
    trained(problem, 1)
    assert not torch.equal(problem.student(X), before)


def test_pruning_against_a_loop() -> None:
    weights = [torch.randn(3, 4, generator=MADE), torch.randn(5, generator=MADE)]
    before = [weight.clone() for weight in weights]
    prune(weights, 0.3)
    sizes = sorted((abs(v) for weight in before for v in weight.flatten().tolist()), reverse=True)
    least = sizes[round(0.3 * 17) - 1]
    for old, new in zip(before, weights, strict=True):
        assert torch.equal(new, torch.where(old.abs() >= least, old, torch.zeros_like(old)))


def test_ties_are_pruned_to_the_number_asked_for() -> None:
    weights = [torch.ones(10)]
    prune(weights, 0.4)
    assert int(weights[0].sum()) == 4
    prune(weights, 1.0)
    assert int(weights[0].sum()) == 4


@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_the_deployed_student_keeps_so_many_weights(density: float) -> None:
    problem = Problem(PowerProp(density=density))
    found = deployed(problem)
    body = [block[0].weight for block in found.blocks]
    total, kept = sum(w.numel() for w in body), sum(int((w != 0).sum()) for w in body)
    assert kept == round(density * total)
    classifier = found.fc.weight
    assert int((classifier != 0).sum()) == round(min(1, 2 * density) * classifier.numel())
    assert all((p != 0).any() for name, p in found.named_parameters() if name.endswith("bias"))


def test_weight_decay_leaves_the_roots_alone_by_default() -> None:
    for decay in (0.0, 1.0):
        made = PowerProp(decay=decay).prepare(seeded(maps), "student", {})
        rates, named = made.rates(), dict(made.model.named_parameters())
        assert {rates[p] for name, p in named.items() if "original" in name} == {Rates(decay=decay)}
        assert not any(p in rates for name, p in named.items() if "original" not in name)


def test_folding_one_copy_leaves_the_other_s_weights() -> None:
    layer = nn.Linear(3, 2)
    weight = layer.weight.detach().clone()
    register(layer, "weight", Power(2.0))
    net = nn.Sequential(layer)
    folded = fold(copy.deepcopy(net), Power)
    torch.testing.assert_close(folded[0].weight, weight)
    torch.testing.assert_close(net[0].weight, weight)
    assert [name for name, _ in folded[0].named_parameters()] == ["weight", "bias"]


# low_rank ------------------------------------------------------------------------------------------------------------
def test_the_factors_are_a_projection_on_a_subspace() -> None:
    inner, middle, outer = (layer.weight for layer in factors(6, 4, 1.0, torch.zeros(1, dtype=torch.float64)))
    projection = outer @ middle @ inner
    torch.testing.assert_close(projection @ projection, projection)
    torch.testing.assert_close(projection, projection.T)
    assert projection.trace().item() == pytest.approx(4)
    half = [layer.weight for layer in factors(6, 4, 0.5, torch.zeros(1, dtype=torch.float64))]
    assert (half[2] @ half[1] @ half[0]).trace().item() == pytest.approx(4 / 8)


def test_full_rank_begins_as_the_student() -> None:
    plain, ranked = Problem(KD()), Problem(LowRank(rank=8))
    torch.testing.assert_close(ranked.student(X), plain.student(X))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_the_product_answers_as_the_factors_do(rank: int) -> None:
    problem = Problem(LowRank(rank=rank))
    trained(problem)
    found = deployed(problem)
    assert isinstance(found.fc, nn.Linear)
    assert list(found.state_dict()) == list(seeded(maps).state_dict())
    torch.testing.assert_close(found(X), problem.student.eval()(X))
    assert torch.linalg.matrix_rank(found.fc.weight).item() <= (rank or 8)


def test_outer_factors_learn_at_their_own_rate() -> None:
    made = LowRank(outer_lr=7.0).prepare(seeded(maps), "student", {})
    rates = made.rates()
    assert [rates.get(layer.weight, Rates()).lr for layer in made.model.fc] == [7.0, 1.0, 7.0, 1.0]


def test_a_linear_network_learns_in_the_subspace_as_in_the_whole() -> None:
    """Matrix recovery of rank 2: the compressed network keeps up with the full one."""
    target = torch.randn(12, 2, generator=MADE) @ torch.randn(2, 12, generator=MADE) / 12
    u, _, vt = torch.linalg.svd(target)
    full = [0.3 * torch.eye(12) for _ in range(3)]
    narrow = [0.3 * vt[:4], 0.3 * torch.eye(4), 0.3 * u[:, :4]]
    losses = []
    for weights in (full, narrow):
        weights = [w.clone().requires_grad_() for w in weights]
        if weights[0].shape[0] == 12:  # the same start inside the subspace
            weights = [(0.3 * vt).clone().requires_grad_(), weights[1], (0.3 * u).clone().requires_grad_()]
        for _ in range(400):
            loss = (weights[2] @ weights[1] @ weights[0] - target).square().sum()
            grads = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, g in zip(weights, grads, strict=True):
                    w -= 0.05 * g
        losses.append(loss.item())
    assert losses[1] < 1e-3
    assert losses[0] < 1e-2


def test_low_rank_refuses_a_classifier_that_is_not_linear() -> None:
    net = maps()
    net.fc = nn.Sequential(nn.Linear(8, 5))
    with pytest.raises(Refusal, match="that of student is Sequential"):
        LowRank().prepare(net, "student", {})
    layers = nn.Sequential(*factors(8, 2, 1.0, torch.zeros(1)), nn.Linear(8, 5))
    rows = layers(torch.ones(1, 8))
    torch.testing.assert_close(product(layers)(torch.ones(1, 8)), rows)


# mpo_share -----------------------------------------------------------------------------------------------------------
def shared(problem: Problem) -> list[tuple[torch.Tensor, ...]]:
    from kdbench.methods import _mpo as mpo

    layers = [problem.student.blocks[i][0] for i in (1, 2)]
    found = [mpo.tensors_of(layer, "weight") for layer in layers]
    assert all(found)
    return found  # type: ignore[return-value]


def test_layers_of_one_shape_share_the_central_tensor_alone() -> None:
    one, two = shared(Problem(MPOShare(edge=2), "tokens"))
    assert [a is b for a, b in zip(one, two, strict=True)] == [False, True, False]
    assert one[1].data_ptr() == two[1].data_ptr()


def test_the_first_layer_starts_as_it_was() -> None:
    problem, plain = Problem(MPOShare(edge=2), "tokens"), seeded(tokens, seed=1)
    torch.testing.assert_close(problem.student.blocks[1][0].weight, plain.blocks[1][0].weight, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(problem.student.blocks[2][0].weight, plain.blocks[2][0].weight, atol=1e-3)


def test_the_shared_tensor_moves_in_both_layers() -> None:
    problem = Problem(MPOShare(edge=2), "tokens")
    trained(problem, 2)
    one, two = shared(problem)
    assert one[1] is two[1]
    found = deployed(problem)
    torch.testing.assert_close(found(X), problem.student.eval()(X))


def test_shared_parameters_are_counted_once_and_folded_ones_as_before() -> None:
    wide = lambda: tokens(width=32)  # noqa: E731
    plain = sum(p.numel() for p in wide().parameters())
    counts = []
    for folds in (False, True):
        method = MPOShare(fold=folds, edge=2)
        student = method.prepare(seeded(wide), "student", {}).model
        held = method.deploy(copy.deepcopy(student), nn.Module())
        counts.append(sum(p.numel() for p in held.parameters()))
        torch.testing.assert_close(held(X), student(X), rtol=1e-4, atol=1e-5)
    assert counts[1] == plain
    assert counts[0] < plain


def test_truncated_bonds_have_fewer_parameters() -> None:
    wide = lambda: tokens(width=32)  # noqa: E731
    counts = [
        sum(p.numel() for p in MPOShare(rank=rank).prepare(seeded(wide), "student", {}).model.parameters())
        for rank in (2, 8, 0)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]


def test_layers_that_all_differ_cannot_share() -> None:
    with pytest.raises(Refusal, match="its matrices all differ: 6x36, 8x54"):
        Problem(MPOShare(), "maps")
    assert isinstance(maps(), Net)
    assert all(term.isfinite() for term in Problem(MPOShare(), "vectors").terms(batch()).values())

"""Feature, relation and contrastive methods: invariances, closed forms, loops in numpy, the deployed graph."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from small_nets import CLASSES, EXAMPLES, STUDENTS, Net, Problem, Tap, batch, maps, profile, seeded
from torch import nn

from kdbench.method import Refusal
from kdbench.methods.at import AT, at_loss, attention, last_backwards
from kdbench.methods.crd import CRD, contrast, moved, nce
from kdbench.methods.fitnet import FitNet, fitnet_loss, regressor
from kdbench.methods.rkd import RKD, relations, rkd_loss
from kdbench.methods.simkd import SimKD, projector, simkd_loss
from kdbench.methods.sp import SP, sp_loss

MADE = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=MADE, dtype=torch.float64)


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(randn(size, size))[0]


# fitnet --------------------------------------------------------------------------------------------------------------
SIZES = [(8, 8), (8, 4), (8, 2), (4, 8), (2, 8), (1, 4), (4, 1), (6, 2), (2, 6), (8, 7), (7, 8), (5, 3), (14, 8)]


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_the_regressor_fits_any_two_sizes(size_s: int, size_t: int) -> None:
    net = regressor((3, size_s, size_s), (5, size_t, size_t)).eval()
    assert net(torch.randn(2, 3, size_s, size_s)).shape == (2, 5, size_t, size_t)


def test_the_regressor_of_the_usual_ratios_is_mdistiller_s() -> None:
    for size_s, size_t, kind, kernel, stride, padding in (
        (8, 8, nn.Conv2d, 1, 1, 0),
        (16, 8, nn.Conv2d, 3, 2, 1),
        (8, 16, nn.ConvTranspose2d, 4, 2, 1),
        (8, 7, nn.Conv2d, 2, 1, 0),
    ):
        conv, norm, relu = regressor((3, size_s, size_s), (5, size_t, size_t))
        assert type(conv) is kind
        assert (conv.kernel_size, conv.stride, conv.padding) == ((kernel,) * 2, (stride,) * 2, (padding,) * 2)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(relu, nn.ReLU)


def test_maps_that_no_one_convolution_fits_are_refused() -> None:
    with pytest.raises(Refusal, match="higher"):
        regressor((3, 4, 8), (3, 8, 4))


def test_fitnet_is_zero_only_for_equal_features() -> None:
    a, b = randn(4, 3, 2, 2), randn(4, 3, 2, 2)
    assert fitnet_loss(a, a).item() == 0
    assert fitnet_loss(a, b).item() == pytest.approx(((a - b).numpy() ** 2).mean())


def test_fitnet_hints_at_the_block_asked_for() -> None:
    for block, width_s, width_t in ((1, 4, 6), (2, 6, 8), (3, 8, 10)):
        layers = Problem(FitNet(block=block)).heads.modules()
        (conv,) = (m for m in layers if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
        assert (conv.in_channels, conv.out_channels) == (width_s, width_t)


# at ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_against_a_loop(power: float) -> None:
    feature = randn(3, 4, 2, 3)
    for b, found in enumerate(attention(feature, power)):
        values = [(np.abs(feature[b, :, i, j].numpy()) ** power).mean() for i in range(2) for j in range(3)]
        np.testing.assert_allclose(found.numpy(), np.array(values) / np.linalg.norm(values))


def test_at_ignores_scale_of_each_example_and_order_of_channels() -> None:
    s, t = randn(3, 4, 2, 2), randn(3, 7, 2, 2)
    base = at_loss(s, t).item()
    assert base == pytest.approx(((attention(s, 2.0) - attention(t, 2.0)).numpy() ** 2).mean())
    scaled = at_loss(s * torch.tensor([0.1, 2.0, 30.0])[:, None, None, None], t[:, torch.randperm(7, generator=MADE)])
    assert scaled.item() == pytest.approx(base, rel=1e-9)
    assert at_loss(s, s[:, [2, 0, 3, 1]] * 3).item() == pytest.approx(0, abs=1e-15)
    assert at_loss(s, t.flip(3)).item() != pytest.approx(base)


def test_at_pairs_blocks_from_the_last_backwards() -> None:
    assert last_backwards([1, 2, 3], ["a", "b"]) == [(3, "b"), (2, "a")]
    problem, given = Problem(AT(weight=1.0), "two blocks"), batch()
    learner, teachers = problem.outs(given.x)
    (teacher,) = teachers.values()
    expected = sum(at_loss(learner.blocks[i], teacher.blocks[i + 2]).item() for i in (0, 1))
    assert AT(weight=1.0).loss(learner, teachers, given, problem.heads)["at"].item() == pytest.approx(expected)


# sp ------------------------------------------------------------------------------------------------------------------
def test_sp_against_a_loop() -> None:
    s, t = randn(4, 3, 2, 2), randn(4, 6)
    expected = 0.0
    for i in range(4):
        rows = []
        for q in (s.flatten(1).numpy(), t.numpy()):
            row = np.array([q[i] @ q[j] for j in range(4)])
            rows.append(row / np.linalg.norm(row))
        expected += ((rows[0] - rows[1]) ** 2).sum() / 16
    assert sp_loss(s, t).item() == pytest.approx(expected, rel=1e-10)


def test_sp_ignores_rotation_and_scale_of_features() -> None:
    s, t = randn(5, 6), randn(5, 4)
    assert sp_loss(3 * s @ rotation(6), 0.2 * t @ rotation(4)).item() == pytest.approx(sp_loss(s, t).item(), rel=1e-9)
    assert sp_loss(s, s @ rotation(6)).item() == pytest.approx(0, abs=1e-15)
    assert sp_loss(s[:1], t[:1].abs()).item() == pytest.approx(0, abs=1e-15)  # one example resembles itself


# rkd -----------------------------------------------------------------------------------------------------------------
def test_rkd_relations_against_loops() -> None:
    e = randn(5, 3)
    distance_BB, angle_BBB = relations(e)
    lengths = np.array([[np.linalg.norm(e[i] - e[j]) for j in range(5)] for i in range(5)])
    np.testing.assert_allclose(distance_BB.numpy(), lengths / (lengths.sum() / 20), rtol=1e-12)
    for i in range(5):
        for j in range(5):
            for k in range(5):
                u, v = (e[j] - e[i]).numpy(), (e[k] - e[i]).numpy()
                expected = 0.0 if i in (j, k) else u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                assert angle_BBB[i, j, k].item() == pytest.approx(expected, abs=1e-12)


def test_rkd_against_a_loop_over_huber_losses() -> None:
    s, t = randn(4, 3), randn(4, 6)

    def huber(a: torch.Tensor, b: torch.Tensor) -> float:
        values = np.abs((a - b).numpy()).ravel()
        return float(np.mean([0.5 * v * v if v < 1 else v - 0.5 for v in values]))

    (d_s, a_s), (d_t, a_t) = relations(s), relations(t)
    expected = 25 * huber(d_s, d_t) + 50 * huber(a_s, a_t)
    assert rkd_loss(s, t, 25.0, 50.0).item() == pytest.approx(expected, rel=1e-10)


def test_rkd_ignores_rotation_translation_and_scale() -> None:
    s, t = randn(6, 4), randn(6, 3)
    moved_s = 5 * s @ rotation(4) + randn(4)
    assert rkd_loss(moved_s, t, 25.0, 50.0).item() == pytest.approx(rkd_loss(s, t, 25.0, 50.0).item(), rel=1e-9)
    assert rkd_loss(moved_s, s, 25.0, 50.0).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("count", [1, 2])
def test_rkd_of_fewer_than_three_examples_is_zero(count: int) -> None:
    s = randn(count, 4).requires_grad_()
    loss = rkd_loss(s, randn(count, 3), 25.0, 50.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-20)
    assert s.grad.isfinite().all()


def test_rkd_of_equal_examples_is_finite() -> None:
    s = torch.ones(4, 3).requires_grad_()
    loss = rkd_loss(s, randn(4, 3).float(), 25.0, 50.0)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


def test_rkd_weights_are_separate_knobs() -> None:
    parts = [Problem(RKD(d, a)).terms(batch())["rkd"].item() for d, a in ((25.0, 0.0), (0.0, 50.0), (25.0, 50.0))]
    assert parts[0] + parts[1] == pytest.approx(parts[2], rel=1e-6)
    assert min(parts) > 0


# crd -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("negatives", [1, 4, 30])
def test_crd_of_an_empty_memory_has_a_closed_form(negatives: int) -> None:
    """Every x is 1 / N, so both ways together give 2 [ln(1 + K) + K ln(1 + 1 / K)]."""
    problem = Problem(CRD(weight=1.0, negatives=negatives), dtype=torch.float64)
    bank = problem.heads[0]
    bank.memory_s, bank.memory_t = torch.zeros_like(bank.memory_s), torch.zeros_like(bank.memory_t)
    found = problem.terms(batch(dtype=torch.float64))["crd"].item()
    expected = 2 * (math.log(1 + negatives) + negatives * math.log(1 + 1 / negatives))
    # The released code adds 1e-7 to every denominator x + K / N, on K + 1 logarithms each way.
    assert found == pytest.approx(expected, abs=2 * (negatives + 1) * 1e-7 * EXAMPLES)
    assert (bank.z_s.item(), bank.z_t.item()) == (EXAMPLES, EXAMPLES)


def test_nce_against_a_loop() -> None:
    x, examples = randn(3, 5).abs() / 10, 40
    expected = 0.0
    for row in x.numpy():
        noise = 4 / examples
        expected -= math.log(row[0] / (row[0] + noise + 1e-7)) / 3
        expected -= sum(math.log(noise / (v + noise + 1e-7)) for v in row[1:]) / 3
    assert nce(x, examples).item() == pytest.approx(expected, rel=1e-10)


def test_contrast_against_a_loop_and_its_normaliser_is_set_once() -> None:
    memory, v, tau = randn(10, 4), randn(3, 4), 0.5
    chosen = torch.tensor([[0, 5, 5], [1, 2, 9], [7, 8, 3]])
    x = torch.tensor([[math.exp((v[b] @ memory[j]).item() / tau) for j in row] for b, row in enumerate(chosen)])
    fresh = x.double().mean() * 10
    loss, z = contrast(v, memory, chosen, torch.full((), -1.0, dtype=torch.float64), tau)
    assert z.item() == pytest.approx(fresh.item(), rel=1e-6)
    assert loss.item() == pytest.approx(nce(x.double() / fresh, 10).item(), rel=1e-5)
    again, kept = contrast(2 * v, memory, chosen, torch.full((), 7.0, dtype=torch.float64), tau)
    assert kept.item() == 7.0
    assert again.item() != pytest.approx(loss.item())


def test_memory_moves_only_where_the_batch_is() -> None:
    memory, v = randn(6, 4), randn(2, 4)
    before = memory.clone()
    after = moved(memory, torch.tensor([4, 1]), v, 0.25)
    assert torch.equal(memory, before)
    for row in (0, 2, 3, 5):
        assert torch.equal(after[row], memory[row])
    for row, new in ((4, v[0]), (1, v[1])):
        mix = 0.25 * memory[row] + 0.75 * new
        torch.testing.assert_close(after[row], mix / mix.norm())


def test_crd_remembers_by_index_and_draws_other_examples() -> None:
    problem, given = Problem(CRD(negatives=7)), batch()
    bank = problem.heads[0]
    before = {side: getattr(bank, f"memory_{side}").clone() for side in "st"}
    shapes = []
    original = torch.Tensor.gather

    def spy(self, dim, index):
        shapes.append(index.clone())
        return original(self, dim, index)

    torch.Tensor.gather = spy
    try:
        problem.terms(given)
    finally:
        torch.Tensor.gather = original
    for index in (found for found in shapes if found.shape[1] > 1):
        assert index.shape == (8, 1 + 7)
        assert torch.equal(index[:, 0], given.index_B)
        assert (index[:, 1:] != given.index_B[:, None]).all()
        assert index.min() >= 0
        assert index.max() < EXAMPLES
    for side in "st":
        changed = (getattr(bank, f"memory_{side}") != before[side]).any(1).nonzero().flatten()
        assert changed.tolist() == sorted(given.index_B.tolist())


def test_negatives_of_crd_are_uniform_over_all_others() -> None:
    counts = torch.zeros(EXAMPLES)
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, EXAMPLES, (200, EXAMPLES - 1), generator=generator)
    counts.scatter_add_(0, ((3 + steps) % EXAMPLES).flatten(), torch.ones(steps.numel()))
    assert counts[3] == 0
    expected = steps.numel() / (EXAMPLES - 1)
    assert (counts[torch.arange(EXAMPLES) != 3] - expected).abs().max() < 5 * expected**0.5


def test_negatives_of_crd_are_capped_at_the_other_examples() -> None:
    one = Problem(CRD(negatives=16384)).terms(batch())["crd"].item()
    assert one == Problem(CRD(negatives=EXAMPLES - 1)).terms(batch())["crd"].item()
    lone = profile(maps(), "student", ("pooled",), examples=1)
    with pytest.raises(Refusal, match="only one"):
        CRD().heads(lone, {"teacher": lone})


def test_crd_can_be_learned() -> None:
    """On one batch, seen again and again, the loss falls well below that of features which tell nothing."""
    problem, losses = Problem(CRD(negatives=20, weight=1.0)), []
    optimizer = torch.optim.Adam([*problem.student.parameters(), *problem.heads.parameters()], lr=3e-3)
    for step in range(60):
        terms = problem.terms(dataclasses.replace(batch(), rng=torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        terms["crd"].backward()
        optimizer.step()
        losses.append(terms["crd"].item())
    assert np.mean(losses[-8:]) < 0.75 * 2 * (math.log(21) + 20 * math.log(1 + 1 / 20))


# simkd ---------------------------------------------------------------------------------------------------------------
def test_simkd_is_the_mean_squared_difference_at_the_smaller_size() -> None:
    s, t = randn(2, 3, 4, 4), randn(2, 3, 2, 2)
    pooled = s.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    assert simkd_loss(s, t).item() == pytest.approx(((pooled - t) ** 2).mean().item())
    assert simkd_loss(t, t).item() == 0


def test_the_projector_is_a_bottleneck() -> None:
    layers = [m for m in projector(6, 12, 2) if isinstance(m, nn.Conv2d)]
    found = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in layers]
    assert found == [(6, 6, 1), (6, 6, 3), (6, 12, 1)]
    assert projector(6, 12, 2)(torch.randn(2, 6, 4, 4)).shape == (2, 12, 4, 4)


def deployed(problem: Problem) -> nn.Module:
    method = problem.method
    return method.deploy(copy.deepcopy(problem.student), copy.deepcopy(problem.heads)).eval()


@pytest.mark.parametrize("student", ["maps", "coarse maps", "two blocks"])
def test_the_deployed_student_ends_in_the_teacher_s_classifier(student: str) -> None:
    problem, given = Problem(SimKD(), student), batch()
    problem.heads.eval()
    found = deployed(problem)(given.x)
    block = problem.student.blocks(given.x)
    (teacher,) = problem.teachers.values()
    projected = problem.heads.projector(problem.heads.pool(block))
    torch.testing.assert_close(found, teacher.fc(projected.mean((2, 3))))


def test_a_perfect_projector_gives_the_teacher_s_logits() -> None:
    problem, given = Problem(SimKD(), same=True), batch()
    problem.heads.projector = nn.Identity()
    (teacher,) = problem.teachers.values()
    assert problem.terms(given)["simkd"].item() == 0
    torch.testing.assert_close(deployed(problem)(given.x), teacher(given.x))


def test_the_deployed_graph_is_counted_whole() -> None:
    problem = Problem(SimKD())
    count = {
        "backbone": sum(p.numel() for p in problem.student.blocks.parameters()),
        "projector": sum(p.numel() for p in problem.heads.projector.parameters()),
        "classifier": (12 + 1) * CLASSES,
    }
    assert sum(p.numel() for p in deployed(problem).parameters()) == sum(count.values())
    trainable = {n for n, p in problem.heads.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"projector"}


def test_the_teacher_s_own_classifier_stays_apart() -> None:
    problem = Problem(SimKD())
    (teacher,) = problem.teachers.values()
    before = teacher.fc.weight.clone()
    with torch.no_grad():
        problem.heads.classifier.weight.add_(1)
    assert torch.equal(teacher.fc.weight, before)


def test_a_tap_on_an_input_is_projected_before_its_module() -> None:
    problem, given = Problem(SimKD()), batch()
    found = deployed(problem)(given.x)
    relu = problem.student.blocks[2][1]
    problem.student.blocks[2] = nn.Sequential(*problem.student.blocks[2])
    problem.student.blocks.append(nn.Identity())
    problem.student.kd_taps = {"block3": Tap("blocks.3", "input"), "pooled": Tap("fc", "input")}
    assert isinstance(relu, nn.ReLU)
    torch.testing.assert_close(deployed(problem)(given.x), found)


class Tail(Net):
    """A network with a layer between its last block and the pooling."""

    def __init__(self, layer: nn.Module, features: int = 8) -> None:
        inner = maps()
        super().__init__([*inner.blocks], features)
        del self.fc
        self.tail, self.fc = layer, nn.Linear(features, CLASSES)

    def pooled(self, x):
        return self.tail(x).mean((2, 3))


@pytest.mark.parametrize(
    ("layer", "features", "sentence"),
    [
        (nn.BatchNorm2d(8), 8, "'tail' between its last block and its classifier has weights"),
        (nn.Conv2d(8, 16, 1), 16, "takes 16 features and not the 8 channels"),
    ],
)
def test_layers_before_the_classifier_that_depend_on_channels_are_refused(layer, features, sentence) -> None:
    needs = SimKD().needs()
    student, fine = Tail(layer, features), seeded(maps)
    for one, other in ((student, fine), (fine, student)):
        with pytest.raises(Refusal, match=sentence):
            SimKD().heads(profile(one, "student", needs.learner), {"teacher": profile(other, "teacher", needs.teacher)})
    without = Tail(nn.ReLU())
    SimKD().heads(profile(without, "student", needs.learner), {"teacher": profile(fine, "teacher", needs.teacher)})


def test_simkd_takes_one_teacher_whose_classifier_is_trained() -> None:
    needs, net = SimKD().needs(), maps()
    seen = profile(net, "student", needs.learner)
    for teachers in ({}, {"t1": seen, "t2": seen}):
        with pytest.raises(Refusal, match="one teacher"):
            SimKD().heads(seen, teachers)
    assistant = SimKD().prepare(maps(), "ta", {"teacher": maps()})
    with pytest.raises(Refusal, match="ta cannot teach student"):
        SimKD().prepare(maps(), "student", {"ta": assistant})


# kinds of features ---------------------------------------------------------------------------------------------------
TOKENS = ("tokens", "tokens with a class token")


@pytest.mark.parametrize(
    ("method", "takes"),
    [
        (AT(), TOKENS),
        (SimKD(), ()),
        (FitNet(), (*TOKENS, "vectors")),
        (CRD(), (*TOKENS, "tokens of no square", "vectors")),
        (RKD(), (*TOKENS, "tokens of no square", "vectors")),
        (SP(), (*TOKENS, "tokens of no square", "vectors")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_else_than_maps_it_takes(method, takes) -> None:
    """Maps of any width, size and number are taken by all."""
    for student in STUDENTS:
        if ("tokens" in student or student == "vectors") and student not in takes:
            with pytest.raises(Refusal):
                Problem(method, student)
            continue
        assert all(term.isfinite() for term in Problem(method, student).terms(batch()).values())

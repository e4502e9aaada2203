"""OFA-KD: the enhanced distance against a loop and in its limits; branches of every kind of feature."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_nets import CLASSES, STUDENTS, Problem, batch, profile

from kdbench import models
from kdbench.losses import soft_kl
from kdbench.methods.ofa import OFA, answer, branch, enhanced, merged, merges, stages
from kdbench.models import taps
from kdbench.models.equip import equip

MADE = torch.Generator().manual_seed(0)
Z_S, Z_T = (2 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def softmax(z) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


@pytest.mark.parametrize("epsilon", [1.0, 1.5, 3.0])
def test_the_distance_against_a_loop(epsilon: float) -> None:
    expected = 0.0
    for s, t, y in zip(Z_S.numpy(), Z_T.numpy(), LABELS.tolist(), strict=True):
        p_s, p_t = softmax(s), softmax(t)
        for c in range(5):
            target = float(c == y)
            expected -= ((p_t[c] + target) ** epsilon - target) * math.log(p_s[c]) / 6
    assert enhanced(Z_S, Z_T, LABELS, epsilon).item() == pytest.approx(expected, rel=1e-10)


def test_without_enhancement_it_is_kd_plus_the_teacher_s_entropy() -> None:
    p_t = Z_T.softmax(1)
    entropy = -(p_t * p_t.log()).sum(1).mean()
    expected = (soft_kl(Z_S, Z_T, 1.0) + entropy).item()
    assert enhanced(Z_S, Z_T, LABELS, 1.0).item() == pytest.approx(expected, rel=1e-10)


def test_enhancement_weighs_the_target_more_and_the_others_less() -> None:
    z = Z_S.clone().requires_grad_()
    grads = [torch.autograd.grad(enhanced(z, Z_T, LABELS, e), z)[0] for e in (1.0, 2.0)]
    pulls = [-(g.gather(1, LABELS[:, None])) for g in grads]
    assert (pulls[1] > pulls[0]).all()


def test_a_teacher_that_rules_the_target_out_enhances_nothing() -> None:
    z_t = Z_T.scatter(1, LABELS[:, None], -1e4)
    p_t = z_t.softmax(1).pow(2)
    expected = -(p_t * Z_S.log_softmax(1)).sum(1).mean().item()
    assert enhanced(Z_S, z_t, LABELS, 2.0).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("count", "found"),
    [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (6, [1, 2, 4, 5]), (12, [2, 5, 8, 11]), (24, [5, 11, 17, 23])],
)
def test_four_stages_are_spread_evenly(count: int, found: list[int]) -> None:
    assert stages(count) == found


def test_tokens_are_merged_two_by_two() -> None:
    tokens = torch.arange(17.0)[None, :, None]  # a class token, then a grid of 4 x 4
    assert merged(tokens)[0].tolist() == [[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]
    assert [count for count in range(1, 70) if merges(count)] == [16, 17, 36, 37, 64, 65]


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 1), (16, 6), (17, 6), (5, 6), (9, 7), (6,)])
@pytest.mark.parametrize("following", [0, 1, 3])
def test_every_kind_of_feature_is_answered(shape: tuple[int, ...], following: int) -> None:
    feature = torch.randn(2, *shape, generator=MADE)
    assert answer(branch(shape, 10, following, 7), feature).shape == (2, 7)


def test_maps_are_halved_once_for_each_stage_that_follows() -> None:
    convolutions = [m for m in branch((4, 16, 16), 24, 3, 5).modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == [
        *((4, 4, 2), (4, 8, 1)),
        *((8, 8, 2), (8, 16, 1)),
        *((16, 16, 2), (16, 24, 1)),
    ]


@pytest.mark.parametrize("student", STUDENTS)
def test_no_student_is_refused_and_none_deploys_a_branch(student: str) -> None:
    problem = Problem(OFA(), student)
    terms = problem.terms(batch())
    assert all(term.isfinite() for term in terms.values())
    before = {name for name, _ in problem.student.named_parameters()}
    deployed = OFA().deploy(problem.student, problem.heads)
    assert {name for name, _ in deployed.named_parameters()} == before


def mixer() -> torch.nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    net = MlpMixer(CLASSES, img_size=16, patch_size=4, num_blocks=5, embed_dim=8)
    return equip(net, "mixer", classes=CLASSES)


def built(name: str, **options: object) -> torch.nn.Module:
    return models.build(name, options, classes=CLASSES, channels=3, size=16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: built("vit_tiny_patch16_224", patch_size=4, embed_dim=8, depth=5, num_heads=2),
        mixer,
        lambda: built("mamba", dim=8, depth=5, patch=4),
        lambda: built("mlp", hidden=[8, 8]),
        lambda: built("resnet8"),
    ],
    ids=("vit", "mixer", "mamba", "mlp", "resnet"),
)
def test_real_architectures_of_every_kind(make: Callable[[], torch.nn.Module]) -> None:
    net, needs = make(), OFA().needs()
    learner = taps.profile(net, "student", needs.learner, classes=CLASSES, examples=40, input_shape=(3, 16, 16))
    heads = OFA().heads(learner, {"teacher": profile(STUDENTS["maps"](), "teacher", needs.teacher)})
    out = taps.Tapped(net, "student", needs.learner)(torch.randn(2, 3, 16, 16, generator=MADE))
    blocks = [out.blocks[i] for i in stages(len(out.blocks))]
    rows = [answer(head, block) for head, block in zip(heads, blocks, strict=True)]
    assert [row.shape for row in rows] == [(2, CLASSES)] * len(blocks)
    assert len(rows) == min(4, len(out.blocks))
    torch.stack(rows).sum().backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    assert any(name.startswith(taps.available(net)["block1"].path) for name in reached)


def test_every_branch_counts_once() -> None:
    problem, given = Problem(OFA(weight=1.0, epsilon=1.5)), batch()
    learner, teachers = problem.outs(given.x)
    (teacher,) = teachers.values()
    terms = problem.loss(learner, teachers, given)
    rows = [answer(head, block) for head, block in zip(problem.heads, learner.blocks, strict=True)]
    expected = sum(enhanced(row, teacher.rows, given.labels, 1.5).item() for row in rows)
    assert terms["ofa"].item() == pytest.approx(expected, rel=1e-5)

"""Methods in which students teach each other or themselves, and experts of clusters: limiting cases, loops, plans."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_nets import CLASSES, EXAMPLES, Net, Problem, batch, maps, profile, seeded
from torch import nn
from training import digits, task

from kdbench.batch import Out
from kdbench.losses import cross_entropy, soft_kl
from kdbench.method import Refusal
from kdbench.methods.byot import BYOT, feature_distance
from kdbench.methods.clusters import Clusters, k_means, routed
from kdbench.methods.dgkd import DGKD, kept_mean
from kdbench.methods.kdcl import KDCL, best, least
from kdbench.methods.oem import OEM
from kdbench.methods.oem import ensemble as mean_answer
from kdbench.methods.ofa import answer
from kdbench.methods.one import ONE, ensemble, fresh, ramp
from kdbench.targets import Targets
from kdbench.train.engine import Engine

MADE = torch.Generator().manual_seed(0)
ROWS = [3 * torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(3)]
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def said(method, learner, teachers, heads=None, **changes):
    given = dataclasses.replace(batch(6, dtype=torch.float64), targets=Targets(LABELS, 5), **changes)
    outs = {role: Out(role, rows) for role, rows in teachers.items()}
    return method.loss(learner, outs, given, nn.Module() if heads is None else heads)


# kdcl ----------------------------------------------------------------------------------------------------------------
def test_the_naive_answer_is_the_best_network_s_of_each_example() -> None:
    found = best(ROWS, LABELS)
    for b, y in enumerate(LABELS.tolist()):
        ce = [-float(z[b].log_softmax(0)[y]) for z in ROWS]
        assert torch.equal(found[b], ROWS[int(np.argmin(ce))][b])


def test_the_least_logits_against_a_loop_and_shifts_do_not_matter() -> None:
    found = least(ROWS, LABELS)
    for b, c in np.ndindex(6, 5):
        y = LABELS[b]
        assert found[b, c].item() == min((z[b, c] - z[b, y]).item() for z in ROWS)
    shifts = torch.randn(6, 1, generator=MADE, dtype=torch.float64)
    torch.testing.assert_close(least([z + 7 * shifts for z in ROWS], LABELS), found)


def test_the_least_logits_know_the_label_at_least_as_well_as_any_network() -> None:
    joined = cross_entropy(least(ROWS, LABELS), Targets(LABELS, 5))
    assert all(joined <= cross_entropy(z, Targets(LABELS, 5)) for z in ROWS)


@pytest.mark.parametrize(("form", "joins"), [("naive", best), ("minlogit", least)])
def test_kdcl_learns_from_all_networks_itself_included(form: str, joins) -> None:
    method = KDCL(form=form, temperature=2.0, weight=0.5)
    own = ROWS[0].clone().requires_grad_()
    terms = said(method, Out("student", own), {"peer": ROWS[1], "peer2": ROWS[2]})
    assert terms["kdcl"].item() == pytest.approx(0.5 * soft_kl(ROWS[0], joins(ROWS, LABELS), 2.0).item())
    (found,) = torch.autograd.grad(terms["kdcl"], own)
    z = ROWS[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(0.5 * soft_kl(z, joins(ROWS, LABELS), 2.0), z)
    torch.testing.assert_close(found, expected)  # nothing flows through what they know together


def test_identical_networks_are_content_in_the_naive_form() -> None:
    terms = said(KDCL(form="naive"), Out("student", ROWS[0]), {"peer": ROWS[0]})
    assert terms["kdcl"].item() == pytest.approx(0, abs=1e-12)


def test_kdcl_s_peers_are_declared_or_copies() -> None:
    plan = KDCL(peers=2).plan(("teacher", "student"))
    assert plan.copies == {"peer": "student", "peer2": "student"}
    assert plan.stages[0].learners["peer2"] == ("student", "peer")
    declared = KDCL(peers=1).plan(("student", "peer", "peer2"))
    assert not declared.copies
    assert set(declared.learners) == {"student", "peer", "peer2"}


# dgkd ----------------------------------------------------------------------------------------------------------------
def test_every_assistant_learns_from_all_before_it() -> None:
    stages = DGKD().plan(("teacher", "ta", "ta2", "student")).stages
    assert [dict(stage.learners) for stage in stages] == [
        {"ta": ("teacher",)},
        {"ta2": ("teacher", "ta")},
        {"student": ("teacher", "ta", "ta2")},
    ]


def test_kept_terms_are_averaged() -> None:
    terms = torch.tensor([1.0, 2.0, 6.0])
    assert kept_mean(terms, torch.tensor([1.0, 0.0, 1.0])).item() == 3.5
    assert kept_mean(terms, torch.zeros(3)).item() == 3.0


def test_dgkd_keeps_every_teacher_as_often_as_it_says() -> None:
    teachers, apart = {"teacher": ROWS[1], "ta": ROWS[2]}, []
    one, two = (soft_kl(ROWS[0], z, 4.0).item() for z in ROWS[1:])
    for step in range(400):
        rng = torch.Generator().manual_seed(step)
        term = said(DGKD(kd_weight=1.0), Out("student", ROWS[0]), teachers, rng=rng)["dgkd"].item()
        apart.append(min((one, two, (one + two) / 2), key=lambda value: abs(value - term)))
    assert apart.count(one) / 400 == pytest.approx(0.75 * 0.25, abs=0.06)
    assert apart.count(two) / 400 == pytest.approx(0.75 * 0.25, abs=0.06)


def test_a_lone_teacher_is_kd_whatever_its_survival() -> None:
    for survival in (0.0, 0.5):
        term = said(DGKD(survival=survival, kd_weight=1.0), Out("student", ROWS[0]), {"teacher": ROWS[1]})["dgkd"]
        assert term.item() == pytest.approx(soft_kl(ROWS[0], ROWS[1], 4.0).item())


# byot ----------------------------------------------------------------------------------------------------------------
def test_without_distillation_byot_is_deep_supervision() -> None:
    problem, given = Problem(BYOT(alpha=0.0)), batch()
    learner, _ = problem.outs(given.x)
    terms = problem.loss(learner, {}, given)
    rows = [
        head.classifier(answer(head.feature, block))
        for head, block in zip(problem.heads, learner.blocks[:-1], strict=True)
    ]
    assert len(rows) == 2
    expected = sum(cross_entropy(z, given.targets).item() for z in rows)
    assert terms["byot"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["ce"].item() == pytest.approx(cross_entropy(learner.rows, given.targets).item())


def test_the_deepest_answer_learns_nothing_from_the_branches() -> None:
    problem = Problem(BYOT(alpha=1.0, beta=1.0))
    terms = problem.terms(batch())
    for name in ("byot", "byot_features"):
        grads = torch.autograd.grad(
            terms[name],
            [problem.student.fc.weight, problem.student.blocks[2][0].weight],
            retain_graph=True,
            allow_unused=True,
        )
        assert grads == (None, None)


def test_features_against_a_loop() -> None:
    a, b = ROWS[0], ROWS[1]
    expected = np.mean([sum((x - y) ** 2) for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert feature_distance(a, b).item() == pytest.approx(expected)


def test_byot_needs_a_block_to_branch_behind() -> None:
    lone = profile(maps((4,), (2,)), "student", ("block*", "pooled"))
    with pytest.raises(Refusal, match="student has one block"):
        BYOT().heads(lone, {})


# oem -----------------------------------------------------------------------------------------------------------------
def test_everyone_learns_from_everyone_and_none_is_trained_before() -> None:
    plan = OEM().plan(("teacher", "student", "peer", "peer2", "ta"))
    assert plan.frozen == ()
    assert set(plan.stages[0].learners) == {"widest", "student", "peer", "peer2"}
    assert plan.copies == {"widest": "teacher"}
    assert plan.answer == ("student",)
    assert OEM().plan(("teacher", "widest", "student")).copies == {}


def test_the_ensemble_is_the_mean_of_all_and_has_no_gradient() -> None:
    own = ROWS[0].clone().requires_grad_()
    found = mean_answer([own, *ROWS[1:]])
    assert not found.requires_grad
    torch.testing.assert_close(found, sum(ROWS) / 3)
    method = OEM(kd_weight=0.5, temperature=2.0)
    term = said(method, Out("widest", ROWS[0]), {"student": ROWS[1], "peer": ROWS[2]}, nn.ModuleList())["oem"]
    assert term.item() == pytest.approx(0.5 * soft_kl(ROWS[0], sum(ROWS) / 3, 2.0).item())
    same = said(method, Out("widest", ROWS[0]), {"student": ROWS[0]}, nn.ModuleList())
    assert same["oem"].item() == pytest.approx(0, abs=1e-12)


def test_only_those_narrower_than_the_widest_adapt_to_its_maps() -> None:
    problem = Problem(OEM())
    assert [(m.in_channels, m.out_channels) for m in problem.heads] == [(8, 8), (6, 6), (4, 4)]
    narrow = OEM().heads(problem.profile, problem.profiles())
    assert {rates.lr for rates in narrow.rates().values()} == {0.5}
    widest = OEM().heads(problem.profiles()["widest"], {"student": problem.profile})
    assert len(widest) == 0
    given = batch()
    learner, others = problem.outs(given.x)
    found = OEM().loss(others["widest"], {"student": learner.detach()}, given, widest)
    assert set(found) == {"ce", "oem"}
    terms = OEM(feature_weight=1.0).loss(learner, others, given, problem.heads)
    maps_s, maps_t = (list(reversed(out.blocks)) for out in (learner, others["widest"]))
    squares = [(a(s) - t).square().mean() for a, s, t in zip(problem.heads, maps_s, maps_t, strict=True)]
    assert terms["oem_features"].item() == pytest.approx(sum(squares).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("width", "share"), [((16, 32, 64), 1.0), ((12, 25, 51), 0.6295), ((9, 19, 38), 0.3561), ((6, 12, 25), 0.155)]
)
def test_the_paper_s_widths_are_int_of_shares(width: tuple[int, ...], share: float) -> None:
    number = {16: 0, 12: 1, 9: 2, 6: 3}[width[0]]
    assert tuple(int(c * (5 - number) / 5) for c in (16, 32, 64)) == width
    weights = sum(a * a for a in width) / sum(a * a for a in (16, 32, 64))
    assert weights == pytest.approx(share, abs=0.01)


# one -----------------------------------------------------------------------------------------------------------------
def test_a_gate_that_chooses_one_branch_repeats_it() -> None:
    rows = torch.stack(ROWS)
    for k in range(3):
        share = torch.zeros(6, 3, dtype=torch.float64)
        share[:, k] = 1
        torch.testing.assert_close(ensemble(share, rows), ROWS[k])
    mixed = torch.rand(6, 3, generator=MADE, dtype=torch.float64)
    for b in range(6):
        expected = sum(mixed[b, k] * ROWS[k][b] for k in range(3))
        torch.testing.assert_close(ensemble(mixed, rows)[b], expected)


def test_one_s_distillation_grows() -> None:
    found = [ramp(epoch, 80) for epoch in (0, 39, 79, 200)]
    assert found == pytest.approx([math.exp(-5 * (1 - 1 / 80) ** 2), math.exp(-5 / 4), 1, 1])
    assert ramp(0, 0) == 1


def test_branches_are_new_copies_of_the_last_block() -> None:
    problem = Problem(ONE(branches=4))
    assert len(problem.heads.branches) == 3
    block, classifier = problem.heads.branches[0]
    assert [p.shape for p in block.parameters()] == [p.shape for p in problem.student.blocks[2].parameters()]
    assert not torch.equal(block[0].weight, problem.student.blocks[2][0].weight)
    assert not torch.equal(classifier.weight, problem.heads.branches[1][1].weight)
    layer = nn.BatchNorm2d(3)
    layer.running_mean.fill_(9)
    assert fresh(layer).running_mean.tolist() == [0, 0, 0]
    assert layer.running_mean.tolist() == [9, 9, 9]


def test_one_s_terms_against_their_parts() -> None:
    problem, given = Problem(ONE(temperature=2.0, ramp=0.0)), batch()
    learner, _ = problem.outs(given.x)
    terms = problem.loss(learner, {}, given)
    shared = learner.blocks[-2]
    rows = [learner.rows, *(c(b(shared).mean((2, 3))) for b, c in problem.heads.branches)]
    share = problem.heads.gate(shared.mean((2, 3))).softmax(1)
    joined = sum(share[:, k, None] * z for k, z in enumerate(rows)).detach()
    assert terms["one"].item() == pytest.approx(sum(soft_kl(z, joined, 2.0).item() for z in rows), rel=1e-4)
    ce = sum(cross_entropy(z, given.targets).item() for z in (*rows[1:], joined))
    assert terms["one_labels"].item() == pytest.approx(ce, rel=1e-5)


def test_a_last_block_that_takes_something_else_is_refused() -> None:
    class Skips(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.blocks[0](x)
            return self.fc(self.pooled(self.blocks[2](torch.cat([first, self.blocks[1](first)], 1))))

    def conv(width_in: int, width: int) -> nn.Module:
        return nn.Conv2d(width_in, width, 3, padding=1)

    net = Skips([conv(3, 4), conv(4, 4), conv(8, 6)], 6)
    with pytest.raises(Refusal, match=r"'blocks.2' does not take what that answers, \(4, 8, 8\)"):
        ONE().heads(profile(net, "student", ONE().needs().learner), {})


# clusters ------------------------------------------------------------------------------------------------------------
def test_k_means_finds_what_lies_apart_and_always_the_same() -> None:
    centres = 20 * torch.eye(3)
    rows = torch.cat([centre + torch.randn(10, 3, generator=MADE) for centre in centres])
    found = k_means(rows, 3)
    assert found.dtype == torch.int64
    assert [len(set(found[10 * k : 10 * k + 10].tolist())) for k in range(3)] == [1, 1, 1]
    assert len(set(found.tolist())) == 3
    assert torch.equal(found, k_means(rows, 3))


def test_an_example_reads_only_the_expert_of_its_cluster() -> None:
    cluster = torch.tensor([2, 0, 1, 1, 0, 2])
    rows = [z.clone().requires_grad_() for z in ROWS]
    found = routed(rows, cluster)
    for b, k in enumerate(cluster.tolist()):
        assert torch.equal(found[b], ROWS[k][b])
    found.sum().backward()
    for k, z in enumerate(rows):
        assert torch.equal(z.grad, (cluster == k).double()[:, None].expand(6, 5))


def test_an_expert_learns_the_examples_of_its_cluster() -> None:
    method, heads = Clusters(clusters=3), nn.Module()
    cluster_N = torch.arange(EXAMPLES) % 3
    heads.register_buffer("cluster_N", cluster_N)
    index = torch.tensor([0, 1, 2, 3, 4, 6])
    for k in range(3):
        rows = ROWS[0].clone().requires_grad_()
        terms = said(method, Out(f"expert{k + 1}", rows), {"teacher": ROWS[1]}, heads, index_B=index)
        assert set(terms) == {"ce"}
        own = cluster_N[index] == k
        expected = -ROWS[0].log_softmax(1)[torch.arange(6), LABELS][own].mean()
        assert terms["ce"].item() == pytest.approx(expected.item())
        (grad,) = torch.autograd.grad(terms["ce"], rows)
        assert torch.equal(grad.abs().sum(1) > 0, own)


def test_one_cluster_is_kd_from_its_expert() -> None:
    method, heads = Clusters(clusters=1, kd_weight=1.0), nn.Module()
    heads.register_buffer("cluster_N", torch.zeros(EXAMPLES, dtype=torch.int64))
    terms = said(method, Out("student", ROWS[0]), {"teacher": ROWS[1], "expert1": ROWS[2]}, heads)
    assert terms["clusters"].item() == pytest.approx(soft_kl(ROWS[0], ROWS[2], 4.0).item())


def test_more_clusters_than_examples_are_refused() -> None:
    teacher = dataclasses.replace(profile(maps(), "teacher", ()), rows_NC=torch.zeros(2, CLASSES))
    lone = {"teacher": teacher}
    with pytest.raises(Refusal, match="2 training examples cannot form 3 clusters"):
        Clusters(clusters=3).heads(profile(maps(), "expert1", (), examples=2), lone)
    with pytest.raises(Refusal, match="5 classes cannot form 6 clusters"):
        Clusters(clusters=6, by="classes").heads(profile(maps(), "expert1", ()), lone)
    with pytest.raises(Refusal, match="wants the teachers expert1, teacher, not teacher"):
        Clusters(clusters=1).heads(profile(maps(), "student", ()), lone)


def test_clusters_of_features_are_a_survey_and_those_of_classes_are_groups() -> None:
    (asked,) = Clusters(clusters=3, by="features").needs().survey
    net, x = seeded(maps).eval(), torch.randn(30, 3, 8, 8, generator=MADE)
    features = asked.make(net, x)
    torch.testing.assert_close(net.fc(features), net(x))
    assert torch.equal(asked.finish(features), k_means(features, 3))
    given = Problem(Clusters(clusters=2, by="classes")).batch()
    found = Clusters(clusters=2, by="classes")._cluster(given, nn.Module())
    assert found.tolist() == [int(label) * 2 // CLASSES for label in given.labels]


@pytest.mark.parametrize("by", ["logits", "features", "classes"])
def test_experts_and_student_learn_with_any_clusters(by: str) -> None:
    trained = Engine(task(Clusters(clusters=2, by=by), digits())).train()
    assert {"val/expert1/top1", "val/expert2/top1", "val/top1"} <= trained.curves.keys()

"""Methods that compare the maps of blocks: loops in numpy, limiting cases, which block is compared with which."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_nets import Net, Problem, Tap, batch, maps, profile
from torch import nn

from kdbench.batch import Out
from kdbench.method import Refusal
from kdbench.methods.ab import AB, boundary
from kdbench.methods.cat_kd import CATKD, activation
from kdbench.methods.fsp import FSP, alike, flow, fsp_loss
from kdbench.methods.ft import FT, ft_loss
from kdbench.methods.mgd import MGD, channel_mask, mgd_loss
from kdbench.methods.nst import NST, nst_loss
from kdbench.methods.ofd import OFD, above_margin, margin, mirrored, norm_of, partial_distance
from kdbench.methods.reviewkd import ReviewKD, fused, fusion, hierarchical
from kdbench.methods.semckd import SemCKD, attention, calibrated
from kdbench.methods.srrl import SRRL, linear_classifier, srrl_loss
from kdbench.methods.vid import VID, regression, vid_loss
from kdbench.testing.nets import CLASSES

MADE = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=MADE, dtype=torch.float64)


S, T = randn(2, 3, 2, 2), randn(2, 3, 2, 2)


# nst -----------------------------------------------------------------------------------------------------------------
def test_nst_against_a_loop() -> None:
    s, t = randn(2, 3, 2, 2), randn(2, 4, 2, 2)

    def mean_kernel(a, b) -> float:
        values = []
        for n in range(2):
            for x in a[n]:
                for y in b[n]:
                    u, v = x.numpy().ravel(), y.numpy().ravel()
                    values.append((u @ v / np.linalg.norm(u) / np.linalg.norm(v)) ** 2)
        return float(np.mean(values))

    expected = mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
    assert nst_loss(s, t).item() == pytest.approx(expected, rel=1e-9)


def test_nst_ignores_scale_sign_and_order_of_channels_and_repeats() -> None:
    scale = torch.tensor([0.1, -2.0, 30.0])[None, :, None, None]
    assert nst_loss(scale * S, T).item() == pytest.approx(nst_loss(S, T).item(), rel=1e-9)
    assert nst_loss(S, torch.cat([S, S[:, [2, 0, 1]]], 1)).item() == pytest.approx(0, abs=1e-15)
    assert nst_loss(S, T).item() == pytest.approx(nst_loss(T, S).item(), rel=1e-12)
    assert nst_loss(S, T).item() > 0


def test_nst_needs_places() -> None:
    with pytest.raises(Refusal, match="larger than 1x1"):
        Problem(NST(), "vectors")


# vid -----------------------------------------------------------------------------------------------------------------
def test_vid_against_a_loop_and_with_a_perfect_mean() -> None:
    raw = randn(3)
    expected = 0.0
    for d in range(3):
        variance = math.log1p(math.exp(raw[d])) + 1e-5
        squares = (S[:, d] - T[:, d]).numpy() ** 2
        expected += (0.5 * (squares / variance + math.log(variance))).mean() / 3
    assert vid_loss(S, T, raw).item() == pytest.approx(expected, rel=1e-9)
    start = regression(4, 3, 5.0).raw.double()
    assert vid_loss(T, T, start).item() == pytest.approx(0.5 * math.log(5), abs=1e-6)


def test_vid_s_best_variance_is_the_mean_square() -> None:
    squares = (S - T).square().mean((0, 2, 3))
    raw = (squares - 1e-5).expm1().log().requires_grad_()
    loss = vid_loss(S, T, raw)
    (grad,) = torch.autograd.grad(loss, raw)
    assert grad.abs().max().item() == pytest.approx(0, abs=1e-12)
    assert all(vid_loss(S, T, raw.detach() + step) > loss for step in (0.1, -0.1))


def test_vid_trains_the_variance() -> None:
    problem = Problem(VID())
    problem.terms(batch())["vid"].backward()
    raws = [p for name, p in problem.heads.named_parameters() if name.endswith("raw")]
    assert len(raws) == 3
    assert all(p.grad.abs().sum() > 0 for p in raws)


# ofd -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.3)])
def test_ofd_s_margin_is_the_mean_of_the_negative_half(mean: float, deviation: float) -> None:
    from scipy import integrate, stats

    law = stats.norm(mean, deviation)
    below, _ = integrate.quad(lambda x: x * law.pdf(x), -np.inf, 0)
    found = margin(torch.tensor([mean], dtype=torch.float64), torch.tensor([deviation], dtype=torch.float64))
    assert found.item() == pytest.approx(below / law.cdf(0), rel=1e-6)


def test_ofd_s_margin_of_what_is_hardly_ever_negative() -> None:
    assert margin(torch.tensor([9.0]), torch.tensor([2.0])).item() == -6.0


def test_ofd_s_distance_against_a_loop() -> None:
    s, t, m = randn(4, 3, 2, 2), randn(4, 3, 2, 2), -randn(3).abs()
    expected = 0.0
    for index in np.ndindex(4, 3, 2, 2):
        target = max(t[index].item(), m[index[1]].item())
        if not s[index] <= target <= 0:
            expected += (target - s[index].item()) ** 2 / 4
    assert partial_distance(above_margin(t, m), s).item() == pytest.approx(expected, rel=1e-9)


def test_ofd_is_zero_where_both_are_suppressed_or_equal() -> None:
    m = torch.tensor([-0.5, -1.0, -0.1], dtype=torch.float64)
    suppressed = -2 - T.abs()
    assert partial_distance(above_margin(suppressed, m), -2 - S.abs()).item() == 0
    assert partial_distance(above_margin(T.abs(), m), T.abs()).item() == 0
    cut = above_margin(torch.zeros_like(T), m)  # a ReLU has cut it off: the margin
    assert torch.equal(cut, m[:, None, None].expand_as(cut))
    assert partial_distance(cut, torch.zeros_like(T)).item() > 0


def test_ofd_s_margin_without_batch_norm_mirrors_the_positive_half() -> None:
    t = torch.tensor([[[[1.0, 0.0], [3.0, -7.0]]], [[[0.0, 0.0], [0.0, 2.0]]]])
    assert mirrored(t).tolist() == [-2.0]
    assert mirrored(-t.abs()).tolist() == [0.0]


def test_ofd_reads_the_last_norm_of_a_block() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net = Net([block], 4)
    seen = profile(net, "teacher", ("block*",))
    assert norm_of(seen, "block1", 4) is block[4]
    assert norm_of(seen, "block1", 5) is None
    with torch.no_grad():
        block[4].weight.fill_(-2.0)
        block[4].bias.fill_(0.5)
    heads = OFD().heads(profile(maps(), "student", ("block*",)), {"teacher": seen})
    expected = margin(torch.full((4,), 0.5), torch.full((4,), 2.0))
    torch.testing.assert_close(heads[0][0].margin, expected)
    net.kd_taps["block1"] = Tap("blocks.0", "input")
    assert norm_of(dataclasses.replace(seen, model=net), "block1", 4) is None


def test_ofd_halves_from_the_last_block_backwards() -> None:
    class Known(nn.Module):
        margin = None

        def regress(self, x: torch.Tensor) -> torch.Tensor:
            return x

    blocks = {f"block{i}": randn(2, 3, 2, 2) for i in (1, 2, 3)}
    taught = {f"block{i}": randn(2, 3, 2, 2) for i in (1, 2, 3)}
    learner, teacher = Out("student", randn(2, 5), blocks), Out("teacher", randn(2, 5), taught)
    found = OFD()._blocks([Known()] * 3, learner, teacher).item()
    parts = [
        partial_distance(above_margin(t, mirrored(t)), s).item()
        for s, t in zip(blocks.values(), taught.values(), strict=True)
    ]
    assert found == pytest.approx(parts[0] / 4 + parts[1] / 2 + parts[2])


# ab ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mu", [1.0, 0.3])
def test_ab_against_a_loop(mu: float) -> None:
    s, t = 2 * randn(4, 3, 2, 2), randn(4, 3, 2, 2)
    expected = 0.0
    for index in np.ndindex(4, 3, 2, 2):
        a, active = s[index].item(), t[index].item() > 0
        if active and a <= mu:
            expected += (a - mu) ** 2 / 4
        if not active and a > -mu:
            expected += (a + mu) ** 2 / 4
    assert boundary(t, s, mu).item() == pytest.approx(expected, rel=1e-9)


def test_ab_is_content_beyond_the_margin() -> None:
    assert boundary(T, T.sign() * (1 + S.abs()), 1.0).item() == 0
    assert boundary(7 * T, S, 1.0).item() == boundary(T, S, 1.0).item()


@pytest.mark.parametrize(("method", "name"), [(AB(first=0.3), "ab"), (FSP(first=0.3), "fsp")])
def test_the_first_epochs_learn_features_alone_and_the_others_labels(method, name: str) -> None:
    problem = Problem(method)
    for epoch in range(10):
        terms = problem.terms(batch(epoch=epoch))
        assert (terms[name] > 0) == (epoch < 3)
        assert (terms["ce"] > 0) == (epoch >= 3)


# ft ------------------------------------------------------------------------------------------------------------------
def test_ft_against_a_loop() -> None:
    expected = 0.0
    for s, t in zip(S.numpy(), T.numpy(), strict=True):
        expected += np.abs(s / np.linalg.norm(s) - t / np.linalg.norm(t)).mean() / 2
    assert ft_loss(S, T).item() == pytest.approx(expected, rel=1e-9)
    assert ft_loss(torch.tensor([3.0, 0.2])[:, None, None, None] * S, S).item() == pytest.approx(0, abs=1e-12)


def test_ft_s_student_moves_no_encoder_and_the_paraphrase_no_student() -> None:
    problem = Problem(FT())
    terms = problem.terms(batch())
    encoder, translator = problem.heads[0].encoder[0].weight, problem.heads[0].translator[0].weight
    student = problem.student.blocks[2][0].weight

    def moves(name: str, weight: torch.Tensor) -> bool:
        (found,) = torch.autograd.grad(terms[name], [weight], retain_graph=True, allow_unused=True)
        return found is not None

    assert [moves("ft", w) for w in (encoder, translator, student)] == [False, True, True]
    assert [moves("ft_paraphrase", w) for w in (encoder, translator, student)] == [True, False, False]


@pytest.mark.parametrize(("inside", "channels"), [(0.5, 6), (2.0, 24), (0.1, 1)])
def test_ft_s_paraphrase_has_a_share_of_the_channels(inside: float, channels: int) -> None:
    head = Problem(FT(inside=inside)).heads[0]
    assert [m[6].out_channels for m in (head.encoder, head.translator)] == [channels] * 2


# fsp -----------------------------------------------------------------------------------------------------------------
def test_fsp_against_a_loop() -> None:
    one, two = randn(2, 3, 4, 4), randn(2, 5, 2, 2)
    pooled = one.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    expected = np.zeros((2, 3, 5))
    for b, d, e in np.ndindex(2, 3, 5):
        expected[b, d, e] = (pooled[b, d] * two[b, e]).numpy().sum() / 4
    np.testing.assert_allclose(flow(one, two).numpy(), expected, rtol=1e-12)
    others = (randn(2, 3, 2, 2), randn(2, 5, 2, 2))
    found = fsp_loss((one, two), others).item()
    assert found == pytest.approx(((expected - flow(*others).numpy()) ** 2).mean(), rel=1e-9)
    assert fsp_loss(others, others).item() == 0


def test_fsp_pairs_transitions_of_equal_channels_from_the_last() -> None:
    assert alike([16, 32, 64], [16, 32, 64]) == [(1, 1), (0, 0)]
    assert alike([6, 8], [6, 8, 10, 12]) == [(0, 0)]
    assert alike([4, 4, 4], [4, 4, 4, 4]) == [(1, 2), (0, 1)]
    assert alike([4, 6, 8], [6, 8, 10]) == [(1, 0)]
    assert alike([4, 6], [8, 12]) == []


def test_fsp_refuses_other_channels_with_both_lists() -> None:
    needs = ("block*",)
    seen = [profile(maps(widths), "student", needs) for widths in ((4, 6, 8), (5, 7, 9))]
    with pytest.raises(Refusal, match=r"student has \[4, 6, 8\], teacher \[5, 7, 9\]"):
        FSP().heads(seen[0], {"teacher": seen[1]})


# reviewkd ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "sides"), [(8, [4, 2, 1]), (4, [2, 1]), (3, [2, 1]), (1, [])])
def test_hcl_against_a_loop(size: int, sides: list[int]) -> None:
    s, t = randn(2, 3, size, size), randn(2, 3, size, size)
    expected, total, weight = ((s - t).numpy() ** 2).mean(), 1.0, 1.0
    for side in sides:
        weight /= 2
        cuts = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        squares = [((s - t)[:, :, a:b, c:d].mean((2, 3)).numpy() ** 2).mean() for a, b in cuts for c, d in cuts]
        expected += weight * np.mean(squares)
        total += weight
    assert hierarchical(s, t).item() == pytest.approx(expected / total, rel=1e-9)
    assert hierarchical(s, s).item() == 0


def test_reviews_mix_a_block_with_those_after_it() -> None:
    last, early = fusion(6, 4, 5, last=True), fusion(3, 4, 7, last=False)
    answer, x = fused(last, torch.randn(2, 6, 1, 1, generator=MADE), None, (1, 1))
    assert answer.shape == (2, 5, 1, 1)
    map_s = torch.randn(2, 3, 4, 4, generator=MADE)
    answer, mixed = fused(early, map_s, x, (8, 8))
    assert answer.shape == (2, 7, 8, 8)
    own, later = early.enter(map_s), x.expand(2, 4, 4, 4)
    share = early.attend(torch.cat([own, later], 1))
    torch.testing.assert_close(mixed, share[:, :1] * own + share[:, 1:] * later)


def test_reviewkd_warms_up_and_reviews_the_pooled_feature_too() -> None:
    problem = Problem(ReviewKD(warmup_epochs=4))
    found = [problem.terms(batch(epoch=epoch))["reviewkd"].item() for epoch in (0, 3, 9)]
    assert found[0] == pytest.approx(found[1] / 4, rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-5)
    assert len(problem.heads[0]) == 4  # three blocks and the pooled feature
    assert [head.leave[0].out_channels for head in problem.heads[0]] == [12, 12, 10, 8]


# semckd --------------------------------------------------------------------------------------------------------------
def test_semckd_s_attention_against_a_loop() -> None:
    q, k = randn(2, 3, 4), randn(2, 5, 4)
    found = attention(q, k)
    for b, i in np.ndindex(2, 3):
        raw = [(q[b, i] @ k[b, j] / q[b, i].norm() / k[b, j].norm()).exp().item() for j in range(5)]
        assert found[b, i].tolist() == pytest.approx([r / sum(raw) for r in raw])
    distance = randn(2, 3, 5).abs()
    expected = np.mean([sum((found * distance)[b, i].tolist()) for b, i in np.ndindex(2, 3)])
    assert calibrated(found, distance).item() == pytest.approx(expected)


def test_semckd_of_one_teacher_block_is_a_mean_of_hints() -> None:
    problem, given = Problem(SemCKD(weight=1.0)), batch()
    learner, teachers = problem.outs(given.x)
    (teacher,) = teachers.values()
    lone = dataclasses.replace(teacher, taps={"block4": teacher.blocks[-1]})
    needs = SemCKD().needs()
    seen = profile(problem.student, "student", needs.learner)
    other = dataclasses.replace(problem.profiles()["teacher"], taps={"block4": tuple(teacher.blocks[-1].shape[1:])})
    heads = SemCKD().heads(seen, {"teacher": other})
    found = SemCKD(weight=1.0).loss(learner, {"teacher": lone}, given, heads)["semckd"].item()
    hints = []
    for regress, block in zip(heads[0].regress, learner.blocks, strict=True):
        pooled = nn.functional.adaptive_avg_pool2d(block, min(block.shape[2], 4))
        target = nn.functional.adaptive_avg_pool2d(teacher.blocks[-1], pooled.shape[2])
        hints.append((regress(pooled) - target).square().mean().item())
    assert found == pytest.approx(np.mean(hints), rel=1e-4)


# mgd -----------------------------------------------------------------------------------------------------------------
def test_mgd_against_a_loop() -> None:
    expected = sum(((s - t) ** 2).sum() for s, t in zip(S.numpy(), T.numpy(), strict=True)) / 2
    assert mgd_loss(S, T).item() == pytest.approx(expected, rel=1e-9)


def test_mgd_masks_whole_channels() -> None:
    mask = channel_mask(500, 8, 0.15, torch.Generator().manual_seed(0))
    assert mask.shape == (500, 8, 1, 1)
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.85, abs=0.02)
    assert channel_mask(4, 3, 0.0, torch.Generator()).min() == 1


def test_mgd_without_a_mask_is_a_hint() -> None:
    problem, given = Problem(MGD(weight=1.0, rate=0.0)), batch()
    learner, teachers = problem.outs(given.x)
    head, (teacher,) = problem.heads[0], teachers.values()
    pooled = nn.functional.adaptive_avg_pool2d(teacher.blocks[-1], 2)
    expected = (head.generate(head.align(learner.blocks[-1])) - pooled).square().sum().item() / 8
    assert problem.loss(learner, teachers, given)["mgd"].item() == pytest.approx(expected, rel=1e-5)


# srrl ----------------------------------------------------------------------------------------------------------------
def test_srrl_against_a_loop_and_of_equal_features() -> None:
    u, v, w, z = randn(4, 3), randn(4, 3), randn(5, 3), randn(4, 5)
    answer = u @ w.T
    expected = ((u - v).numpy() ** 2).mean() + ((answer - z).numpy() ** 2).mean()
    assert srrl_loss(u, answer, v, z).item() == pytest.approx(expected, rel=1e-9)
    assert srrl_loss(v, v @ w.T, v, v @ w.T).item() == 0


def test_srrl_answers_with_a_frozen_copy_of_the_teacher_s_classifier() -> None:
    problem = Problem(SRRL())
    problem.terms(batch())["srrl"].backward()
    classifier, (teacher,) = problem.heads[0]["classifier"], problem.teachers.values()
    assert classifier.weight.grad is None
    assert torch.equal(classifier.weight, teacher.fc.weight)
    assert classifier.weight is not teacher.fc.weight
    assert problem.heads[0]["connect"][0].weight.grad.abs().sum() > 0


def test_classifiers_that_are_not_linear_are_refused() -> None:
    net = maps()
    net.fc = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, CLASSES))
    with pytest.raises(Refusal, match="srrl needs a linear classifier, and that of teacher is Sequential"):
        linear_classifier(profile(net, "teacher", ("pooled",)), "srrl")


# cat_kd --------------------------------------------------------------------------------------------------------------
def test_class_activation_maps_average_to_the_logits() -> None:
    problem, given = Problem(CATKD()), batch()
    learner, _ = problem.outs(given.x)
    found = activation(learner.blocks[-1], problem.student.fc, 8)
    assert found.shape == (8, CLASSES, 2, 2)
    torch.testing.assert_close(found.mean((2, 3)), learner.rows)


def test_class_activation_maps_against_a_loop() -> None:
    classifier = nn.Linear(3, 5).double()
    feature = randn(2, 3, 4, 4)
    found = activation(feature, classifier, 2)
    for b, i, j in np.ndindex(2, 2, 2):
        cell = feature[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        places = [classifier(cell[:, m, n]) for m, n in np.ndindex(2, 2)]
        torch.testing.assert_close(found[b, :, i, j], torch.stack(places).mean(0))


def test_cat_kd_of_equal_networks_is_zero() -> None:
    assert Problem(CATKD(), same=True).terms(batch())["cat_kd"].item() == pytest.approx(0, abs=1e-12)
    assert Problem(CATKD()).terms(batch())["cat_kd"].item() > 0


def test_cat_kd_trains_the_student_s_own_classifier() -> None:
    problem = Problem(CATKD())
    problem.terms(batch())["cat_kd"].backward()
    assert problem.student.fc.weight.grad.abs().sum() > 0
    with pytest.raises(Refusal, match="cat_kd cannot read class activation maps of student"):
        Problem(CATKD(), "tokens")

"""Integrated gradients: complete, of the right image, laid over some images, and KD where none is overlaid."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from small_nets import CLASSES, Problem, maps, seeded
from torch import nn
from training import assert_same, digits, recipe, states, task

from kdbench.data.batches import stream
from kdbench.methods.ig import IG, importance, integrated_gradients, overlaid
from kdbench.methods.kd import KD
from kdbench.train.engine import Engine
from kdbench.train.surveys import survey

MADE = torch.Generator().manual_seed(0)
X = torch.randn(6, 3, 8, 8, generator=MADE, dtype=torch.float64)
NET = seeded(maps).double().eval().requires_grad_(False)


def test_parts_sum_to_what_the_image_changes_in_the_answer() -> None:
    """Completeness: sum_i IG(x)_i = f_c(x) - f_c(0)."""
    rows, blank = NET(X), NET(torch.zeros_like(X))
    top = rows.argmax(1, keepdim=True)
    whole = (rows - blank).gather(1, top).squeeze(1)
    off = {}
    for steps in (2, 200):
        parts = integrated_gradients(NET, X, steps).flatten(1)
        off[steps] = ((parts.sum(1) - whole).abs() / parts.abs().sum(1)).max()
    assert off[200] < 0.01 < off[2]


def test_against_a_loop_over_examples_steps_and_classes() -> None:
    found = integrated_gradients(NET, X[:2], 7)
    for b in range(2):
        total = np.zeros((3, 8, 8))
        c = int(NET(X[b : b + 1])[0].argmax())
        for k in range(1, 8):
            at = (X[b : b + 1] * (k - 0.5) / 7).requires_grad_()
            NET(at)[0, c].backward()
            total += at.grad[0].numpy() / 7
        np.testing.assert_allclose(found[b].numpy(), X[b].numpy() * total, rtol=1e-9, atol=1e-12)


def test_of_a_linear_model_it_is_weight_times_input() -> None:
    layer = nn.Linear(192, CLASSES).double().requires_grad_(False)
    found = integrated_gradients(nn.Sequential(nn.Flatten(), layer), X, 3).flatten(1)
    top = layer(X.flatten(1)).argmax(1)
    torch.testing.assert_close(found, X.flatten(1) * layer.weight[top])


def test_a_map_is_at_most_one_and_ignores_signs_and_channels() -> None:
    found = importance(NET, X)
    assert found.shape == (6, 1, 8, 8)
    assert found.amax((1, 2, 3)).tolist() == [1.0] * 6
    plain = integrated_gradients(NET, X).abs().sum(1, keepdim=True)
    torch.testing.assert_close(found.double() * plain.amax((1, 2, 3), keepdim=True), plain, rtol=1e-2, atol=1e-4)


def test_an_overlay_against_a_loop() -> None:
    map_B1HW, power_B = importance(NET, X), torch.tensor([1.0, 1.2, 1.5, 1.7, 1.9, 2.0])
    found = overlaid(X, map_B1HW, power_B, 0.3)
    for b in range(6):
        m = map_B1HW[b, 0].double().numpy() ** power_B[b].item()
        x = X[b].numpy()
        laid = x.min() + (x.max() - x.min()) * (m - m.min()) / (m.max() - m.min())
        np.testing.assert_allclose(found[b].numpy(), 0.7 * x + 0.3 * laid[None], rtol=1e-5)
    torch.testing.assert_close(overlaid(X, map_B1HW, power_B, 0.0), X)
    assert overlaid(X, torch.zeros(6, 1, 8, 8), power_B, 0.5).isfinite().all()


def test_some_images_are_overlaid_with_their_own_map() -> None:
    for probability, expected in ((0.0, 0), (1.0, 8)):
        problem = Problem(IG(probability=probability))
        given = problem.batch()
        changed = problem.method.batch(given)
        assert sum(not torch.equal(a, b) for a, b in zip(given.x, changed.x, strict=True)) == expected
    power_B = (math.log(2) * torch.rand(2, 8, generator=problem.batch().rng)[1]).exp()
    assert 1 <= power_B.min() < power_B.max() <= 2
    torch.testing.assert_close(changed.x, overlaid(given.x, given.surveys["ig_map"], power_B, 0.5))


def test_without_overlays_it_is_kd_and_overlaid_images_have_the_stored_answer() -> None:
    plain, never, always = Problem(KD()), Problem(IG(probability=0.0)), Problem(IG(probability=1.0))
    assert plain.terms(plain.batch())["kd"] == never.terms(never.batch())["kd"]
    given = always.method.batch(always.batch())
    learner, teachers = always.outs(given.x)
    stored = dataclasses.replace(teachers["teacher"], rows=always.batch().surveys["ig_answer"])
    assert not torch.equal(stored.rows, teachers["teacher"].rows)
    expected = KD().loss(learner, {"teacher": stored}, given, nn.Module())["kd"]
    assert always.loss(learner, teachers, given)["kd"] == expected


def test_trained_without_overlays_it_is_kd_to_the_bit() -> None:
    loaded = digits()
    plain, never = (Engine(task(method, loaded)).train() for method in (KD(), IG(probability=0.0)))
    assert_same(states(never.answer), states(plain.answer))


def test_maps_and_answers_belong_to_their_images() -> None:
    """Example 17 alone gives what the survey of all has in its place."""
    loaded = digits()
    work = task(IG(), loaded, recipe_=recipe(augment={}))
    teacher, index_B = work.models["teacher"], torch.tensor([17, 3])
    ((x,),) = stream(loaded.train, [index_B])
    for asked in IG().needs().survey:
        values_N = survey(asked, teacher, loaded, work.recipe.augment).values_N
        torch.testing.assert_close(values_N[index_B], asked.make(teacher, x), rtol=1e-2, atol=1e-3)
        assert not torch.allclose(values_N[17].float(), values_N[3].float(), atol=1e-2)


def test_it_trains_with_crops_and_flips() -> None:
    trained = Engine(task(IG(probability=0.5), digits())).train()
    assert all(value.isfinite().all() for value in trained.answer.state_dict().values())

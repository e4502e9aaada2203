"""A distillation token, and adapters at the teacher: what is added, what learns, and what it is without them."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from small_nets import CLASSES, Problem, maps, seeded
from training import assert_same, digits, network, states, task

from kdbench.batch import Out
from kdbench.method import Refusal
from kdbench.methods.deit import DeiT
from kdbench.methods.kd import KD
from kdbench.methods.okd import OKD, TUTOR
from kdbench.models import size
from kdbench.testing.nets import transformer
from kdbench.train.engine import Engine

MADE = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, 8, 8, generator=MADE)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


# deit ----------------------------------------------------------------------------------------------------------------
def test_the_answer_is_the_mean_of_two_heads_behind_a_transformer_of_one_token_more() -> None:
    plain, made = (seeded(transformer).eval() for _ in range(2))
    with torch.random.fork_rng():
        DeiT().prepare(made, "student", {})
    token, head = made.blocks[0][0].token, made.head
    x = plain._pos_embed(plain.patch_embed(X))
    x = torch.cat([plain.norm_pre(x), token.expand(4, -1, -1)], 1)
    for block in plain.blocks:
        x = block(x)
    x = plain.norm(x)
    expected = (plain.head(x[:, 0]) + head.second(x[:, -1])) / 2
    torch.testing.assert_close(made(X), expected)
    width = token.shape[-1]
    (before, macs), (after, more) = (size.count(net, (3, 8, 8)) for net in (plain, made))
    assert after - before == width + width * CLASSES + CLASSES
    assert more > macs


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_its_terms_against_a_loop(form: str) -> None:
    problem = Problem(DeiT(form=form, alpha=0.3, temperature=2.0), dtype=torch.float64)
    given = problem.batch(5)
    learner, teachers = problem.outs(given.x)
    found = problem.loss(learner, teachers, given)
    z_c, z_d = (z.detach().numpy() for z in problem.student.head.both(learner.pooled))
    z_t = teachers["teacher"].rows.numpy()
    ce = term = 0.0
    for b in range(5):
        ce -= np.log(softmax(z_c[b])[given.labels[b]]) / 5
        p, q = softmax(z_t[b] / 2), softmax(z_d[b] / 2)
        hard = -np.log(softmax(z_d[b])[z_t[b].argmax()])
        term += (hard if form == "hard" else 4 * (p * np.log(p / q)).sum()) / 5
    assert found["ce"].item() == pytest.approx(0.7 * ce)
    assert found["deit"].item() == pytest.approx(0.3 * term)


def test_networks_without_a_class_token_are_refused() -> None:
    with pytest.raises(Refusal, match=r"deit adds a token to a vision transformer of timm's .* the student is Net"):
        DeiT().prepare(maps(), "student", {})


# okd -----------------------------------------------------------------------------------------------------------------
def work(method, loaded):
    """With the trained teacher where the plan wants it; the engine is given models, the workbench starts them."""
    made = task(method, loaded)
    teacher = network(loaded, "teacher")
    models = {**made.models, "teacher": copy.deepcopy(teacher).eval().requires_grad_(False)}
    if TUTOR in models:
        models[TUTOR] = copy.deepcopy(teacher)
    return dataclasses.replace(made, models=models)


def test_both_terms_against_a_loop_and_who_has_their_gradient() -> None:
    z_s, z_t = (torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(2))
    method, given = OKD(alpha=0.4, temperature=2.0), Problem(OKD()).batch(6)
    student = method.loss(Out("student", z_s), {TUTOR: Out(TUTOR, z_t)}, given, torch.nn.Module())
    tutor = method.loss(Out(TUTOR, z_t), {"student": Out("student", z_s)}, given, torch.nn.Module())
    forward = backward = ce = 0.0
    for b in range(6):
        p, q = softmax(z_s[b].numpy() / 2), softmax(z_t[b].numpy() / 2)
        forward += 4 * (q * np.log(q / p)).sum() / 6
        backward += 4 * (p * np.log(p / q)).sum() / 6
        ce -= np.log(softmax(z_t[b].numpy())[given.labels[b]]) / 6
    assert {name: value.item() for name, value in student.items()} == pytest.approx({"okd": forward})
    assert {name: value.item() for name, value in tutor.items()} == pytest.approx(
        {"ce": 0.6 * ce, "okd": 0.4 * backward}
    )


def test_adapters_that_do_not_learn_leave_kd() -> None:
    """But for rounding: a network that is differentiated uses other kernels."""
    loaded = digits()
    plain = Engine(work(KD(temperature=1.0, ce_weight=0.0, kd_weight=1.0), loaded)).train()
    still = Engine(work(OKD(adapter_lr=0.0), loaded)).train()
    for name, value in states(plain.answer).items():
        torch.testing.assert_close(still.answer.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_adapters_alone_learn_and_the_backbone_stays_as_it_was() -> None:
    loaded = digits()
    made = work(OKD(rank=2), loaded)
    before = states(made.models[TUTOR])
    engine = Engine(made)
    engine.train()
    after = {name.replace("parametrizations.weight.original", "weight"): value for name, value in
             states(engine.models[TUTOR]).items() if ".weight.0." not in name}  # fmt: skip
    assert after.keys() == before.keys()
    assert_same({name: after[name] for name in before}, before)
    adapters = {n: v for n, v in states(engine.models[TUTOR]).items() if n.endswith(".up")}
    assert len(adapters) > 2
    assert all(value.abs().sum() > 0 for value in adapters.values())


def test_without_its_share_the_student_does_not_reach_the_tutor() -> None:
    loaded = digits()

    def adapters(widths: list[int]) -> dict[str, torch.Tensor]:
        made = work(OKD(alpha=0.0), loaded)
        other = {**made.models, "student": network(loaded, "student", spec=("cnn", {"widths": widths}))}
        engine = Engine(dataclasses.replace(made, models=other))
        engine.train()
        return states(engine.models[TUTOR])

    assert_same(adapters([4, 8, 8]), adapters([5, 5, 5]))

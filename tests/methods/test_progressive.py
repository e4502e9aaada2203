"""Progressive ensembles: the residual, the arms, and the two-player game of B-DISTIL on tensors and in training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from small_nets import Problem, batch
from torch import nn
from training import SPECS, assert_same, digits, network, recipe, snapshot, states

from kdbench import models
from kdbench.batch import Out
from kdbench.losses import cross_entropy, soft_kl
from kdbench.method import Method, Plan, Refusal, Stage, clashes
from kdbench.methods import _bdistil as bdistil
from kdbench.methods.active import Active
from kdbench.methods.born_again import BornAgain
from kdbench.methods.chain import Chain
from kdbench.methods.dkd import DKD
from kdbench.methods.kd import KD
from kdbench.methods.mixup import Mixup
from kdbench.methods.none import NoTeacher
from kdbench.methods.opdf import OPDF
from kdbench.methods.progressive import Progressive, added
from kdbench.models import size as flops
from kdbench.models.mamba import scan_native
from kdbench.result import Result
from kdbench.suite.job import expand
from kdbench.suite.load import load
from kdbench.tasks import classification
from kdbench.train import evaluate
from kdbench.train.engine import Engine
from kdbench.train.state import Sum, Training
from kdbench.train.workbench import Workbench, on_device

LADDER = {"weak1": [2, 3, 4], "weak2": [3, 4, 6], "weak3": [4, 6, 8], "weak4": [4, 8, 8]}
ROLES = ("teacher", "student", *LADDER, "control")


@pytest.fixture(scope="module")
def loaded():
    return digits()


def task(method: Method, loaded, weaks: int = 4, **changes) -> Training:
    roles = [role for role in ROLES if not role.startswith("weak") or int(role[4:]) <= weaks]
    plan = method.plan(tuple(roles))
    specs = SPECS | {role: ("cnn", {"widths": widths}) for role, widths in LADDER.items()}
    made = {role: network(loaded, role, spec=specs.get(role)) for role in plan.roles}
    for role in plan.frozen:
        made[role].eval().requires_grad_(False)
    plain = {"augment": {"crop": 0, "flip": False}} | changes
    return Training(method, plan, made, loaded, recipe(**plain), 0)


def logits(size: int = 8, classes: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# plans ---------------------------------------------------------------------------------------------------------------
def test_each_student_learns_from_the_teacher_and_its_predecessors() -> None:
    roles = ("teacher", "student", "weak1", "weak2", "weak3", "ta", "weakest")
    weak = ("weak1", "weak2", "weak3")
    residual = Progressive().plan(roles)
    assert residual.stages == (
        Stage({"weak1": ("teacher",)}),
        Stage({"weak2": ("teacher", "weak1")}),
        Stage({"weak3": ("teacher", "weak1", "weak2")}),
    )
    assert (residual.answer, residual.combine, residual.frozen) == (weak, "sum", ("teacher",))
    assert Progressive(arm="bdistil").plan(roles) == dataclasses.replace(residual, combine="mean")
    independent = Progressive(arm="independent", share=0.5).plan(roles)
    assert independent == Plan(tuple(Stage({role: ("teacher",)}, 0.5) for role in weak), weak, combine="mean")
    assert Progressive(alpha=1.0).plan(roles).frozen == ()
    assert Progressive(arm="control").plan(roles) == Plan((Stage({"control": ("teacher",)}),), ("control",))


def test_what_it_may_wrap_and_what_may_wrap_it() -> None:
    assert clashes(OPDF(Progressive())) == clashes(Progressive(OPDF())) == clashes(Progressive(Mixup(DKD()))) == []
    assert clashes(OPDF(Progressive(OPDF()))) == []
    assert clashes(OPDF(BornAgain())) == []
    for wrong, member in (
        (Chain(Progressive()), "plan"),
        (Active(Progressive()), "sample"),
        (BornAgain(OPDF()), "loss"),
    ):
        (sentence,) = clashes(wrong)
        assert f"both set `{member}`" in sentence
    assert len(clashes(BornAgain(Progressive()))) == 2
    with pytest.raises(ValueError, match="a loss of its own"):
        Progressive(over=DKD(), arm="bdistil")


# residual ------------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_paper_s_on_the_sum() -> None:
    given = batch(dtype=torch.float64)
    own, first, second, teacher = (logits(seed=seed) for seed in range(4))
    said = {"teacher": Out("teacher", teacher), "weak1": Out("weak1", first), "weak2": Out("weak2", second)}
    terms = Progressive(alpha=0.3).loss(Out("weak3", own), said, given, nn.Module())
    total = first + second + own
    expected = 0.3 * cross_entropy(total, given.targets) + 0.7 * soft_kl(total, teacher, 4.0)
    assert torch.stack(list(terms.values())).sum().item() == pytest.approx(expected.item(), rel=1e-12)
    wrapped = Progressive(DKD(), alpha=0.0).loss(Out("weak3", own), said, given, nn.Module())
    alone = DKD().loss(Out("weak3", total), {"teacher": said["teacher"]}, given, nn.Module())
    for name in alone:
        assert wrapped[name].item() == pytest.approx(alone[name].item(), rel=1e-12)


def test_there_is_nothing_left_to_learn_where_the_teacher_is_the_sum_of_the_predecessors() -> None:
    given, first, second = batch(dtype=torch.float64), logits(seed=1), logits(seed=2)
    own = torch.zeros_like(first, requires_grad=True)
    said = {"weak1": Out("weak1", first), "weak2": Out("weak2", second)}

    def gradient(teacher: torch.Tensor, alpha: float) -> float:
        terms = Progressive(alpha=alpha).loss(
            Out("weak3", own), {"teacher": Out("teacher", teacher), **said}, given, nn.Module()
        )
        return torch.autograd.grad(torch.stack(list(terms.values())).sum(), own)[0].abs().max().item()

    assert gradient(first + second, alpha=0.0) < 1e-12
    assert gradient(first + second, alpha=0.5) > 1e-3  # the labels go on teaching
    assert gradient(first, alpha=0.0) > 1e-3


def test_views_are_added_like_the_batch() -> None:
    def out(role: str, seed: int) -> Out:
        return Out(role, logits(seed=seed), views=(Out(role, logits(seed=seed + 10)),))

    found = added(out("weak2", 0), {"weak1": out("weak1", 1)})
    assert torch.equal(found.rows, logits(seed=0) + logits(seed=1))
    assert torch.equal(found.views[0].rows, logits(seed=10) + logits(seed=11))


def test_a_student_starts_where_its_predecessors_ended(loaded) -> None:
    x = torch.randn(4, 1, 8, 8)
    method, teachers = Progressive(), {"teacher": nn.Identity(), "weak1": nn.Identity()}
    first = method.prepare(network(loaded, "weak1"), "weak1", {"teacher": nn.Identity()})
    assert first(x).abs().max() > 1e-3
    assert not method.prepare(network(loaded, "weak2"), "weak2", teachers)(x).any()
    for arm in ("independent", "bdistil"):
        assert Progressive(arm=arm).prepare(network(loaded, "weak2"), "weak2", teachers)(x).any()
    assert not OPDF(method, align=False).prepare(network(loaded, "weak2"), "weak2", teachers).model(x).any()


# training ------------------------------------------------------------------------------------------------------------
def test_resuming_in_the_middle_of_the_fourth_stage_ends_with_the_same_bits(loaded) -> None:
    saved = []
    made = task(Progressive(), loaded, epochs=2)
    whole = Engine(made, save=lambda state: saved.append(snapshot(state))).train()
    state = next(s for s in saved if (s.stage, s.epoch) == (3, 1))
    again = Engine(task(Progressive(), loaded, epochs=2), state=state).train()
    assert_same(states(again.answer), states(whole.answer))
    assert again.curves == whole.curves
    assert isinstance(again.answer, Sum)
    assert len(again.parts) == 4
    assert len(whole.curves["train/weak4/loss"]) == 8
    # Each stage validates the answer up to its student, the last one the whole.
    end = classification.scores(
        evaluate.split_answers(whole.parts[0], loaded.val) + evaluate.split_answers(whole.parts[1], loaded.val),
        loaded.val.labels,
    )
    assert whole.curves["val/weak2/top1"][3] == end["top1"]
    assert "val/weak4/top1" not in whole.curves


@pytest.mark.parametrize("arm", ["residual", "independent", "bdistil", "control"])
def test_every_arm_trains_and_leaves_the_teacher_as_it_was(loaded, arm: str) -> None:
    made = task(Progressive(arm=arm), loaded, weaks=2)
    before = states(made.models["teacher"])
    trained = Engine(made).train()
    assert_same(states(made.models["teacher"]), before)
    x = torch.randn(3, 1, 8, 8)
    said = torch.stack([part(x) for part in trained.parts])
    torch.testing.assert_close(trained.answer(x), said.sum(0) if arm in ("residual", "control") else said.mean(0))


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("arm", ["residual", "bdistil"])
def test_half_precision_trains_a_ladder_as_single_precision_does(loaded, arm: str, device: str) -> None:
    on = on_device(loaded, torch.device(device))
    said = []
    for precision in ("fp32", "bf16"):
        made = task(Progressive(arm=arm), on, weaks=2, precision=precision)
        for model in made.models.values():
            model.to(device)
        answer = Engine(made).train().answer
        assert {value.dtype for value in answer.parameters()} == {torch.float32}
        said.append(evaluate.split_answers(answer, on.val, precision).flatten())
    assert not torch.equal(*said)
    assert torch.cosine_similarity(*said, dim=0) > 0.99


def test_independent_students_are_those_of_plain_training(loaded) -> None:
    trained = Engine(task(Progressive(arm="independent"), loaded, weaks=2)).train()
    alone = task(Progressive(arm="independent"), loaded, weaks=1)
    assert_same(states(trained.parts[0]), states(Engine(alone).train().answer))


def test_over_parameterised_students(loaded) -> None:
    method = OPDF(Progressive(), align=False)
    trained = Engine(task(method, loaded, weaks=2)).train()
    plain = [network(loaded, role, spec=("cnn", {"widths": LADDER[role]})) for role in ("weak1", "weak2")]
    assert [list(part.state_dict()) for part in trained.parts] == [list(net.state_dict()) for net in plain]
    assert "train/weak2/kd" in trained.curves


def test_prefix_macs_add_up(loaded) -> None:
    trained = Engine(task(Progressive(), loaded, weaks=3, epochs=1)).train()
    alone = [flops.count(part, (1, 8, 8)) for part in trained.parts]
    assert flops.count(trained.answer, (1, 8, 8)) == tuple(map(sum, zip(*alone, strict=True)))


@pytest.mark.skipif(bool(scan_native.problem()), reason="the native scan cannot be compiled here")
def test_a_saved_ladder_predicts_the_same_on_another_scan_backend(loaded, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def ladder(backend: str) -> dict[str, nn.Module]:
        sizes = {"weak1": (1, 8), "weak2": (2, 10)}
        return {
            role: models.build(
                "mamba",
                {"depth": depth, "dim": dim, "patch": 4, "backend": backend},
                classes=10,
                channels=1,
                size=8,
            )
            for role, (depth, dim) in sizes.items()
        }

    made = task(Progressive(), loaded, weaks=2, epochs=1)
    trained = Engine(dataclasses.replace(made, models={**made.models, **ladder("torch")})).train()
    save_file({k: v.contiguous() for k, v in trained.answer.state_dict().items()}, tmp_path / "ladder.safetensors")
    other = Sum(list(ladder("native").values())).eval()
    other.load_state_dict(load_file(tmp_path / "ladder.safetensors"))
    x = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(other(x), trained.answer(x), atol=1e-4, rtol=1e-4)
        assert trained.answer(x).std() > 1e-2


# the game of B-DISTIL ------------------------------------------------------------------------------------------------
def test_the_weights_are_those_of_the_rounds_one_by_one() -> None:
    errors, eta = torch.randn(3, 20, 4, dtype=torch.float64), 0.7
    plus = minus = torch.full((20, 4), 1 / 40, dtype=torch.float64)
    for error in errors:
        plus, minus = plus * torch.exp(-eta * error), minus * torch.exp(eta * error)
        total = (plus + minus).sum(0)
        plus, minus = plus / total, minus / total
    found = bdistil.weights(errors.sum(0), eta)
    torch.testing.assert_close(found.plus_NC, plus)
    torch.testing.assert_close(found.minus_NC, minus)
    first = bdistil.weights(torch.zeros(20, 4), eta)
    torch.testing.assert_close(first.plus_NC, torch.full((20, 4), 1 / 40))
    torch.testing.assert_close(first.examples_N, torch.full((20,), 4 / 20))
    assert bdistil.weights(1e6 * errors.sum(0), eta).plus_NC.isfinite().all()


def play(rounds: int, sign: float) -> tuple[float, float]:
    """Decision stumps against a teacher in their convex hull: (largest error of the mean, its bound)."""
    made = torch.Generator().manual_seed(0)
    n, outputs, stumps = 200, 2, 60
    x = torch.randn(n, generator=made, dtype=torch.float64)
    cuts = torch.randn(stumps, generator=made, dtype=torch.float64)
    signs = (torch.rand(stumps, outputs, generator=made) < 0.5).double() * 2 - 1
    learners = torch.where(x[None] > cuts[:, None], 1.0, -1.0)[:, :, None] * signs[:, None]  # (stumps, n, outputs)
    mix = torch.rand(stumps, generator=made, dtype=torch.float64) ** 4
    teacher = torch.einsum("s,snc->nc", mix / mix.sum(), learners)
    bound = torch.tensor(2.0, dtype=torch.float64)
    eta = bdistil.step_size(n, rounds, bound)
    errors, total = torch.zeros_like(teacher), torch.zeros_like(teacher)
    for _ in range(rounds):
        given = bdistil.weights(sign * errors, eta)
        edge = torch.einsum("nc,snc->s", given.plus_NC - given.minus_NC, learners - teacher)
        chosen = learners[edge.argmax()]
        errors, total = errors + chosen - teacher, total + chosen
    return (total / rounds - teacher).abs().max().item(), 2.0 * math.sqrt(math.log(2 * n) / rounds)


def test_the_game_converges_below_its_bound_and_not_with_the_sign_reversed() -> None:
    found = {rounds: play(rounds, 1.0) for rounds in (10, 40, 160, 640)}
    assert all(error < bound for error, bound in found.values())
    assert found[640][0] < found[40][0] / 3 < found[10][0] / 3
    error, bound = play(640, -1.0)
    assert error > 2 * bound


def test_the_barrier_is_least_where_the_game_wants_it() -> None:
    """For each example D = B (K+ - K-) / (K+ + K-): nought in the first round, against the errors so far later."""
    bound, so_far = torch.tensor(3.0, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    given = bdistil.weights(so_far, 0.4)

    def gradient(errors: torch.Tensor) -> torch.Tensor:
        errors = errors.clone().requires_grad_(True)
        value = bdistil.barrier(given.plus_NC, given.minus_NC, errors, bound)
        return torch.autograd.grad(value, errors)[0]

    best = -bound * torch.tanh(0.4 * so_far)
    assert gradient(best).abs().max() < 1e-14
    assert (gradient(best + 0.1) > 0).all()  # convex: the only minimum
    assert (gradient(best - 0.1) < 0).all()


def test_the_barrier_has_a_gradient_outside_its_domain() -> None:
    for value in (-50.0, -1.0, 1.0, 50.0):
        error = torch.tensor([[value]], requires_grad=True)
        bdistil.barrier(torch.ones(1, 1), torch.ones(1, 1), error, torch.tensor(1.0)).backward()
        assert error.grad is not None
        assert error.grad.isfinite()
        assert error.grad.sign() == math.copysign(1, value)


def test_a_batch_drawn_by_the_weights_estimates_the_search_without_bias() -> None:
    made = torch.Generator().manual_seed(3)
    n, classes = 30, 3
    so_far, teacher, own = (torch.randn(n, classes, generator=made, dtype=torch.float64) for _ in range(3))
    bound = torch.tensor(9.0, dtype=torch.float64)
    given = bdistil.weights(so_far, 0.5)
    heads = nn.Module()
    memory = {"plus_NC": given.plus_NC, "minus_NC": given.minus_NC, "teacher_NC": teacher, "bound": bound}
    for name, value in memory.items():
        heads.register_buffer(name, value)
    method = Progressive(arm="bdistil")
    share_N = given.examples_N / given.examples_N.sum()
    expected = 0.0
    for i in range(n):
        one = dataclasses.replace(batch(1, dtype=torch.float64), index_B=torch.tensor([i]))
        terms = method.loss(Out("weak1", own[i : i + 1]), {"teacher": Out("teacher", teacher[i : i + 1])}, one, heads)
        expected += share_N[i].item() * terms["bdistil"].item()
    whole = bdistil.barrier(given.plus_NC, given.minus_NC, own - teacher, bound).item() * n
    assert expected == pytest.approx(whole, rel=1e-9)


def test_a_game_records_its_edges_and_says_where_a_student_is_not_a_weak_learner(loaded) -> None:
    saved = []
    method = Progressive(arm="bdistil")
    trained = Engine(task(method, loaded, weaks=3), save=lambda state: saved.append(snapshot(state))).train()
    for k, role in enumerate(("weak1", "weak2", "weak3")):
        curve = trained.curves[f"train/{role}/weak_classes"]
        assert curve[:-1] == [None] * (2 * k + 1)
        assert 0 <= curve[-1] <= 10
    assert trained.curves["train/weak1/edge"][-1] == pytest.approx(0, abs=1e-5)  # K+ = K-: nobody has an edge
    short = [role for role in ("weak2", "weak3") if trained.curves[f"train/{role}/weak_classes"][-1] < 10]
    assert short  # two epochs are too few
    assert len(trained.notes) == len(short)
    for role, note in zip(short, trained.notes, strict=True):
        met = round(trained.curves[f"train/{role}/weak_classes"][-1])
        assert note.startswith(f"{role} meets the weak-learning condition of B-DISTIL in {met} of 10 classes")
    for state in saved[1:-1:2]:
        again = Engine(task(method, loaded, weaks=3), state=state).train()
        assert_same(states(again.answer), states(trained.answer))
        assert (again.notes, again.curves) == (trained.notes, trained.curves)


def test_the_wrapped_method_s_refusals_and_needs_stay(loaded) -> None:
    assert Progressive(DKD()).needs() == DKD().needs()
    assert Progressive(arm="bdistil").needs().probe
    with pytest.raises(Refusal, match="no teacher"):
        Engine(task(OPDF(Progressive(alpha=1.0)), loaded, weaks=1)).train()
    assert Problem(Progressive(NoTeacher(), alpha=0.0)).terms(batch()).keys() == {"ce"}
    assert Progressive().over == KD(temperature=4.0, ce_weight=0.0, kd_weight=1.0)


# the suite -----------------------------------------------------------------------------------------------------------
def test_a_job_of_the_suite_records_every_prefix_and_keeps_the_whole_ladder(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = Path(__file__).parents[2] / "suites" / "digits-pkd.yaml"
    text = path.read_text().replace("min_top1: 90", "min_top1: 0")
    (tmp_path / "digits-pkd.yaml").write_text(text)
    suite = load(tmp_path / "digits-pkd.yaml")
    jobs = {(job.pair, job.label): job for job in expand(suite, epochs=1, seeds=[0])}
    job = jobs["cnn", "progressive"]
    bench = Workbench.load(job, tmp_path, torch.device("cpu"), tmp_path / "runs")
    found = bench.perform(job)
    assert (found.status, found.reason, len(found.prefixes)) == ("ok", "", 3)
    assert found.cost is not None
    last = found.prefixes[-1]
    assert (last.parameters, last.macs) == (found.cost.parameters, found.cost.macs)
    assert last.scores == found.scores
    rungs = [flops.count(bench.build(job, prefix.role), bench.data.shape) for prefix in found.prefixes]
    assert [prefix.macs for prefix in found.prefixes] == [sum(m for _, m in rungs[: k + 1]) for k in range(3)]
    assert Result.from_json(found.to_json()) == found
    kept = Sum([bench.build(job, prefix.role) for prefix in found.prefixes]).eval()
    kept.load_state_dict(load_file(tmp_path / "runs" / "students" / f"{job.key}.safetensors"))
    said = evaluate.split_answers(kept, bench.data.test)
    top1 = classification.scores(said, bench.data.test.labels)["top1"]
    assert top1 == pytest.approx(found.scores["test/top1"], abs=0.2)
    alone = bench.perform(jobs["cnn", "control"])
    assert (alone.prefixes, alone.exits) == ([], [])
    assert alone.cost is not None
    assert alone.cost.macs == pytest.approx(last.macs, rel=0.05)  # the control has the group's MACs

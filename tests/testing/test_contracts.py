"""The contracts themselves: correct methods of every kind pass without being in any list, and each fault is found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench import Method, Needs, Plan, Refusal, Stage, Wrapper, knob, plugins
from kdbench.losses import mean_of, soft_kl, supervised
from kdbench.methods.fitnet import FitNet
from kdbench.methods.kd import KD
from kdbench.methods.none import NoTeacher
from kdbench.tasks.classification import Classification, Scores
from kdbench.testing import Contract, MethodContract, Problem, TaskContract, batch
from kdbench.testing.contract import explained
from kdbench.testing.watch import nothing_is_read, read_in_class


def failures(contract: type[Contract], subject: Any) -> dict[str, str]:
    """The tests of a contract that a subject does not pass, and what they say."""
    found = {}
    for name in dir(contract):
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(getattr(contract, name), "pytestmark", []) if mark.name == "parametrize"]
        for value in marks[0].args[1] if marks else [None]:
            try:
                getattr(contract(), name)(subject, *([value] if marks else []))
            except pytest.skip.Exception:
                pass
            except (Exception, pytest.fail.Exception) as error:
                found[name] = str(error)
    return found


# correct methods -----------------------------------------------------------------------------------------------------
HEAD = '''"""Something of A. Author, 2026.

    L = CE + w distance
"""
from dataclasses import dataclass

from kdbench import F, Method, Needs, Plan, Refusal, Stage, Wrapper, knob, nn, torch
from kdbench.losses import mean_of, soft_kl, supervised


@dataclass(frozen=True)
'''
GOOD = {
    "with_heads": '''class WithHeads(Method):
    """A head that is trained, a memory, and noise from the batch's generator."""

    weight: float = knob(1.0, "weight", low=0.0, high=10.0)

    def needs(self):
        return Needs(learner=("pooled",), teacher=("pooled",))

    def heads(self, learner, teachers):
        heads = nn.ModuleDict({role: nn.Linear(learner.taps["pooled"][0], t.taps["pooled"][0])
                               for role, t in teachers.items()})
        heads.register_buffer("seen_N", torch.zeros(learner.examples))
        return heads

    def loss(self, learner, teachers, batch, heads):
        heads.seen_N = heads.seen_N.index_fill(0, batch.index_B, 1.0)
        noise = torch.rand(len(batch.index_B), 1, generator=batch.rng).to(learner.pooled)
        term = mean_of(F.mse_loss(heads[role](learner.pooled + 0.01 * noise), t.pooled) for role, t in teachers.items())
        return {"ce": supervised(learner, batch), "with_heads": self.weight * term, "with_heads_seen":
                0.0001 * heads.seen_N.mean() * learner.rows.float().square().mean()}
''',
    "maps_only": '''class MapsOnly(Method):
    """Features that only networks with maps have: tokens and vectors are refused."""

    def needs(self):
        return Needs(learner=("block-1",), teacher=("block-1",))

    def heads(self, learner, teachers):
        if len(learner.blocks[-1]) != 3:
            raise Refusal(f"maps_only compares maps, and the {learner.role} answers {learner.blocks[-1]}")
        return nn.Module()

    def loss(self, learner, teachers, batch, heads):
        energy = learner.blocks[-1].float() if learner.rows.dtype == torch.bfloat16 else learner.blocks[-1]
        energy = energy.square().mean((1, 2, 3))
        term = mean_of((energy - t.blocks[-1].to(energy.dtype).square().mean((1, 2, 3))).square().mean()
                       for t in teachers.values())
        return {"ce": supervised(learner, batch), "maps_only": term}
''',
    "transformers_only": '''class TransformersOnly(Method):
    """A student of timm's that has a class token; all others are refused."""

    def prepare(self, model, role, teachers):
        if getattr(model, "cls_token", None) is None:
            raise Refusal(f"transformers_only wants a class token, which the {role} does not have")
        return model

    def loss(self, learner, teachers, batch, heads):
        return {"ce": supervised(learner, batch), "transformers_only":
                mean_of(soft_kl(learner.rows, t.rows, 2.0) for t in teachers.values())}
''',
    "around": '''class Around(Wrapper):
    """A wrapper with a learnt temperature of its own beside the heads of what it wraps."""

    over: Method = __import__("kdbench.methods.kd").methods.kd.KD()
    push: float = knob(0.5, "weight of the temperature's term", low=0.1, high=2.0)

    extends = ("loss",)

    def heads(self, learner, teachers):
        heads = nn.Module()
        heads.over = self.over.heads(learner, teachers)
        heads.log_t = nn.Parameter(torch.zeros(()))
        return heads

    def deploy(self, model, heads):
        return self.over.deploy(model, heads.over)

    def loss(self, learner, teachers, batch, heads):
        mean = learner.rows.square().mean() * heads.log_t.exp()
        return {**self.over.loss(learner, teachers, batch, heads.over), "around": self.push * mean}
''',
    "other_graph": '''class OtherGraph(Method):
    """Deploys the student's trunk with a classifier that was trained in the heads."""

    def needs(self):
        return Needs(learner=("pooled",))

    def heads(self, learner, teachers):
        return nn.ModuleDict({"fc": nn.Linear(learner.taps["pooled"][0], learner.classes)})

    def loss(self, learner, teachers, batch, heads):
        rows = heads["fc"](learner.pooled).float() if learner.rows.dtype == torch.bfloat16 else heads["fc"](
            learner.pooled)
        return {"other_graph": mean_of(soft_kl(rows, t.rows, 1.0) for t in teachers.values())}

    def deploy(self, model, heads):
        model.set_submodule(model.kd_classifier, heads["fc"])
        return model
''',
    "no_teacher": '''class NoTeacher(Method):
    """The student's own confidence is its teacher; no term is the task's."""

    def plan(self, roles):
        return Plan((Stage({"student": ()}),))

    def loss(self, learner, teachers, batch, heads):
        p = learner.rows.float().softmax(1) if learner.rows.dtype == torch.bfloat16 else learner.rows.softmax(1)
        return {"ce": supervised(learner, batch), "no_teacher": -(p * p.log()).sum(1).mean()}
''',
}


@pytest.mark.parametrize("name", GOOD)
def test_a_correct_method_passes_without_an_entry_in_any_list(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(HEAD + GOOD[name], encoding="utf-8")
    method = plugins.method_class(f"./{name}.py", tmp_path)()
    assert failures(MethodContract, method) == {}


# faults --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Good(Method):
    """Something (Author 2026): L = CE + KL."""

    t: float = knob(4.0, "temperature", low=1.0, high=8.0)

    def term(self, learner, teachers, batch, heads):
        return mean_of(soft_kl(learner.rows, out.rows, self.t) for out in teachers.values())

    def loss(self, learner, teachers, batch, heads):
        return {"ce": supervised(learner, batch), "good": self.term(learner, teachers, batch, heads)}


@dataclass(frozen=True)
class NoScalar(Good):
    def term(self, learner, teachers, batch, heads):
        return learner.rows.mean(1)


@dataclass(frozen=True)
class Constant(Good):
    def term(self, learner, teachers, batch, heads):
        return super().term(learner, teachers, batch, heads).detach().requires_grad_(True)


@dataclass(frozen=True)
class Global(Good):
    def term(self, learner, teachers, batch, heads):
        return torch.rand(()) * learner.rows.square().mean()


@dataclass(frozen=True)
class Narrow(Good):
    def term(self, learner, teachers, batch, heads):
        return learner.rows.float().square().mean()


@dataclass(frozen=True)
class Rounded(Good):
    def term(self, learner, teachers, batch, heads):
        return learner.rows.square().mean()


@dataclass(frozen=True)
class Neighbours(Good):
    def term(self, learner, teachers, batch, heads):
        return F.mse_loss(learner.rows, learner.rows.roll(1, 0))


@dataclass(frozen=True)
class Lone(Good):
    def term(self, learner, teachers, batch, heads):
        return learner.rows[2:].square().mean()


@dataclass(frozen=True)
class Summed(Good):
    def term(self, learner, teachers, batch, heads):
        return torch.stack([soft_kl(learner.rows, out.rows, self.t) for out in teachers.values()]).sum()


@dataclass(frozen=True)
class Reading(Good):
    def term(self, learner, teachers, batch, heads):
        found = super().term(learner, teachers, batch, heads)
        return found if found > 0 else 2 * found


@dataclass(frozen=True)
class Masking(Good):
    def term(self, learner, teachers, batch, heads):
        return learner.rows[batch.labels >= 0].square().mean()


@dataclass(frozen=True)
class Branching(Good):
    def term(self, learner, teachers, batch, heads):
        if batch.epoch > 1000:
            return learner.rows.sum().item()
        return super().term(learner, teachers, batch, heads)


@dataclass(frozen=True)
class Dividing(Good):
    low: float = knob(1.0, "a divisor", low=0.0, high=2.0)

    def term(self, learner, teachers, batch, heads):
        return learner.rows.square().mean() / torch.tensor(self.low)


@dataclass(frozen=True)
class Unranged(Good):
    free: float = knob(1.0, "a weight without a range")


@dataclass(frozen=True)
class Field(Good):
    plain: int = 3


@dataclass(frozen=True)
class Untold(Good):
    """Something by somebody."""


@dataclass(frozen=True)
class Late(Good):
    def plan(self, roles):
        return Plan((Stage({"student": ("peer",)}), Stage({"peer": ("teacher",), "student": ("teacher",)})))


@dataclass(frozen=True)
class InPlace(Good):
    def batch(self, batch):
        batch.x.mul_(2)
        return batch


@dataclass(frozen=True)
class Untrained(Good):
    def loss(self, learner, teachers, batch, heads):
        return {"good": F.mse_loss(learner.pooled, torch.zeros_like(learner.pooled))}

    def needs(self):
        return Needs(learner=("pooled",))


@dataclass(frozen=True)
class Idle(Good):
    def heads(self, learner, teachers):
        return nn.Linear(2, 2)


@dataclass(frozen=True)
class Teaching(Good):
    def heads(self, learner, teachers):
        heads = nn.Module()
        heads.__dict__["net"] = next(iter(teachers.values())).model
        return heads

    def term(self, learner, teachers, batch, heads):
        return F.mse_loss(learner.rows, heads.net(batch.x))


@dataclass(frozen=True)
class Forgetful(Good):
    def heads(self, learner, teachers):
        heads = nn.Module()
        heads.__dict__["mean"] = torch.zeros(())
        return heads

    def term(self, learner, teachers, batch, heads):
        heads.__dict__["mean"] = 0.5 * heads.mean + 0.5 * learner.rows.detach().mean()
        return (learner.rows - heads.mean).square().mean()


@dataclass(frozen=True)
class Shared(Good):
    def heads(self, learner, teachers):
        heads = nn.Module()
        heads.fc = learner.model.get_submodule(learner.model.kd_classifier)
        return heads


@dataclass(frozen=True)
class Silent(Good):
    def heads(self, learner, teachers):
        raise Refusal("no")


@dataclass(frozen=True)
class Features(Good):
    def deploy(self, model, heads):
        model.set_submodule(model.kd_classifier, nn.Identity())
        return model


@dataclass(frozen=True)
class Headless(Wrapper):
    """Loses the heads of what it wraps."""

    over: Method = KD()

    def heads(self, learner, teachers):
        return nn.Module()


@dataclass(frozen=True)
class Greedy(Wrapper):
    """Forgets what the wrapped method needs."""

    over: Method = FitNet()

    def needs(self):
        return Needs()


@dataclass(frozen=True)
class Sampling(Good):
    def needs(self):
        return Needs(probe=True)

    def sample(self, probe):
        return -probe.rows_NC.square().mean(1)


FAULTS = {
    NoScalar: "test_terms_are_finite_scalars",
    Constant: "test_each_term_moves",
    Global: "test_batch_rng_alone",
    Narrow: "test_float64_agrees",
    Rounded: "test_bfloat16",
    Neighbours: "test_the_order_of_a_batch",
    Lone: "test_a_batch_of_two",
    Summed: "test_several_teachers",
    Reading: "test_nothing_is_read",
    Masking: "test_nothing_is_read",
    Branching: "test_its_source_reads",
    Dividing: "test_both_ends_of_every_knob",
    Unranged: "test_every_field_is_a_knob",
    Field: "test_every_field_is_a_knob",
    Untold: "test_its_docstrings",
    Late: "test_its_plan",
    InPlace: "test_a_changed_batch",
    Untrained: "test_the_gradient_reaches",
    Idle: "test_the_gradient_reaches",
    Teaching: "test_the_gradient_reaches",
    Forgetful: "test_heads_survive",
    Shared: "test_heads_share",
    Silent: "test_any_features",
    Features: "test_what_is_deployed",
    Headless: "test_a_wrapper_keeps_the_features",
    Greedy: "test_a_wrapper_keeps_what",
    Sampling: "test_sampling_weights",
}


def alone(prefix: str) -> type[Contract]:
    """The contract of methods with one test alone."""
    (name,) = [name for name in dir(MethodContract) if name.startswith(prefix)]
    return type("One", (Contract,), {"subject": "method", name: getattr(MethodContract, name)})


@pytest.mark.parametrize(("fault", "test"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_found_by_the_test_meant_for_it(fault: type[Method], test: str) -> None:
    assert failures(alone(test), fault())


def test_the_method_that_the_faults_are_made_of_has_none() -> None:
    assert failures(MethodContract, Good()) == {}
    assert failures(MethodContract, NoTeacher()) == {}


# the pieces ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
        lambda x: F.one_hot(x.long().abs()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: range(x.sum().long()),
    ],
)
def test_what_waits_for_the_device_is_found(read) -> None:
    x = torch.randn(4, 4)
    read(x)
    with pytest.raises(AssertionError, match="waits for the device"), nothing_is_read():
        read(x)
    with nothing_is_read():
        torch.where(x > 0, x, 0).sum() + x.gather(1, torch.zeros(4, 1, dtype=torch.int64)).mean() + x[[0, 1]].mean()


def test_what_a_step_calls_is_read_and_nothing_else() -> None:
    text = """
def hot(x): return x.item()
def cold(x): return x.nonzero()
class Mine:
    def heads(self, l, t): return cold(1).tolist()
    def loss(self, l, t, b, h): return hot(l)
class Other:
    def loss(self): return 1 .cpu()
"""
    assert read_in_class(text, "Mine") == {"item"}


def test_a_class_without_a_subject_is_told_how_to_name_one() -> None:
    class Empty(MethodContract):
        pass

    class Brackets(MethodContract):
        method = KD  # type: ignore[assignment]

    for contract, words in ((Empty, "write `method = ...`"), (Brackets, "write it with brackets")):
        with pytest.raises(pytest.Collector.CollectError, match=words):
            contract.found()
    assert list(type("Two", (MethodContract,), {"cases": {"a": KD(), "b": KD(2.0)}}).found()) == ["a", "b"]
    assert list(type("One", (MethodContract,), {"method": KD()}).found()) == ["KD"]


def test_a_refusal_explains_itself() -> None:
    explained(Refusal("kd cannot learn from a teacher without classes"))
    with pytest.raises(AssertionError, match="without a sentence: 'no'"):
        explained(Refusal("no"))


def test_views_and_probes_are_given_where_they_are_needed() -> None:
    needs = dataclasses.replace(Sampling().needs(), views=3)
    method = type("Views", (Sampling,), {"needs": lambda self: needs})()
    problem = Problem(method)
    given = problem.batch()
    learner, teachers = problem.outs(given.x, given.views)
    assert len(given.views) == len(learner.views) == len(teachers["teacher"].views) == 2
    assert problem.profiles()["teacher"].rows_NC.shape == problem.probe().rows_NC.shape == (40, 5)
    assert batch().views == ()


# tasks ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Upside(Classification):
    """Its scorer counts mistakes where its headline says right answers."""

    def scorer(self):
        class Wrong(Scores):
            def scores(self):
                return {**super().scores(), "top1": 100 - super().scores()["top1"]}

        return Wrong()


@dataclass(frozen=True)
class Total(Classification):
    """Its loss is a sum over rows."""

    def supervised(self, rows, targets):
        return {"ce": super().supervised(rows, targets)["ce"] * len(rows)}


@dataclass(frozen=True)
class Hoarding(Classification):
    """Its scorer keeps every row of logits."""

    def scorer(self):
        class All(Scores):
            def add(self, rows, targets, teacher_rows=None):
                super().add(rows, targets, teacher_rows)
                self.kept = rows

        return All()


@pytest.mark.parametrize(
    ("task", "test"),
    [
        (Upside(10), "test_right_rows_score_best"),
        (Total(10), "test_supervised_terms_are_means_over_rows"),
        (Hoarding(10), "test_the_scorer_keeps_a_few_numbers_a_row"),
    ],
)
def test_faults_of_tasks_are_found(task, test: str) -> None:
    assert set(failures(TaskContract, task)) == {test} | (
        {"test_rows_of_weight_0_do_not_count"} if isinstance(task, Total) else set()
    )

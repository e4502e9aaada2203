"""The part of a method's contract that is about what it declares: a frozen value, knobs, sources, a plan."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from kdbench import plugins
from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import supervised
from kdbench.method import Method, Needs, Plan, Refusal, Wrapper, chain, changes, clashes, knob, knobs
from kdbench.suite.knobs import method_model
from kdbench.testing.contract import Contract, explained
from kdbench.testing.problem import EPOCHS, Problem, accepted, total

PAIRS = [("teacher", "student"), ("teacher", "student", "ta"), ("teacher", "ta", "ta2", "student", "peer")]
MEMBERS = frozenset(["needs", "plan", "prepare", "deploy", "choose", "sample", "batch", "heads", "loss", "review"])


@dataclasses.dataclass(frozen=True)
class Hint(Method):
    """What every wrapper is put over: features of both sides, and a head that is trained and must be kept."""

    weight: float = knob(1.0, "weight of the feature distance", low=0.0, high=10.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        size = learner.taps["pooled"][0]
        return nn.ModuleList(nn.Linear(size, teacher.taps["pooled"][0]) for teacher in teachers.values())

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, torch.Tensor]:
        pairs = zip(heads, teachers.values(), strict=True)
        hint = torch.stack([F.mse_loss(regress(learner.pooled), t.pooled) for regress, t in pairs]).mean()
        return {"ce": supervised(learner, batch), "hint": self.weight * hint}


def ends(method: Method) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each end of each knob's range, and each of its choices: ("temperature: 20.0", {"temperature": 20.0})."""
    for name, field in knobs(method).items():
        spec, default = field.metadata["knob"], field.default
        values: list[Any] = list(spec["choices"] or ())
        if isinstance(default, bool):
            values = [not default]
        elif isinstance(default, int | float) and not values:
            values = [type(default)(end) for end in (spec["low"], spec["high"]) if end is not None]
        yield from ((f"{name}: {value}", {name: value}) for value in values if value != getattr(method, name))


class Declarations(Contract):
    """See `MethodContract`."""

    subject = "method"
    method: ClassVar[Method]

    @classmethod
    def unfit(cls, value: Any) -> str:
        if isinstance(value, Method):
            return ""
        hint = " (write it with brackets)" if isinstance(value, type) else ""
        return f"{value!r} is no method: give a value such as `Mine()`, whose class inherits kdbench.Method{hint}"

    def test_it_is_a_frozen_hashable_value(self, method: Method) -> None:
        again = dataclasses.replace(method)  # type: ignore[type-var]
        assert method == again
        assert hash(method) == hash(again)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.anything = 1  # type: ignore[attr-defined]

    def test_every_field_is_a_knob_whose_default_is_in_its_range(self, method: Method) -> None:
        type(method)()  # as a suite that sets no knob makes it
        found = knobs(method)
        fields = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
        assert fields - {"over"} == set(found), "every field is declared by kdbench.knob"
        assert ("over" in fields) == isinstance(method, Wrapper)
        method_model(type(method))()  # the schema checks defaults against ranges and types
        for name, field in found.items():
            spec = field.metadata["knob"]
            assert spec["help"], f"knob {name} says nothing of its meaning"
            if isinstance(field.default, int | float):
                assert spec["low"] is None or spec["low"] <= field.default
                assert spec["high"] is None or field.default <= spec["high"]
                assert not spec["log"] or spec["low"] > 0
            if isinstance(field.default, float):
                assert spec["choices"] or (spec["low"], spec["high"]) != (None, None), f"{name} has no range to search"

    def test_both_ends_of_every_knob_work_or_are_refused(self, method: Method) -> None:
        for title, knob_values in ends(method):
            try:
                changed = dataclasses.replace(method, **knob_values)  # type: ignore[type-var]
                problem = Problem(changed, accepted(method))
            except (Refusal, ValueError) as refused:
                explained(refused, title)
                continue
            terms = problem.terms(problem.batch(epoch=EPOCHS // 2))
            assert all(value.isfinite() for value in terms.values()), f"{title}: {terms}"

    def test_its_docstrings_name_source_and_formula(self, method: Method) -> None:
        """Title, authors, year and `L = ...`, in the docstring of the class or of its module."""
        own = inspect.getdoc(type(method)) or ""
        assert own.splitlines()[0].endswith("."), "the class's docstring begins with one sentence"
        text = f"{own}\n{sys.modules[type(method).__module__].__doc__ or ''}"
        if not isinstance(method, Wrapper):
            assert "L = " in text, "the formula is missing: a line with `L = ...`"
        problem = Problem(method)
        if problem.teachers or set(problem.terms(problem.batch())) - supervised_names(problem):
            assert re.search(r"\b(19[5-9]|20[0-4])\d\b", text), "the source's year is missing"

    @pytest.mark.parametrize("roles", PAIRS, ids="-".join)
    def test_its_plan_is_consistent(self, method: Method, roles: tuple[str, ...]) -> None:
        plan = method.plan(roles)
        _check(plan, roles)
        missing = _missing(plan, roles)  # the user is told of these; a pair that has them must do
        if missing:
            plan = method.plan((*roles, *missing))
            _check(plan, (*roles, *missing))
            assert not _missing(plan, (*roles, *missing)), f"with {missing} it asks for still others"

    def test_a_wrapper_keeps_what_it_does_not_set(self, method: Method) -> None:
        if not isinstance(method, Wrapper):
            pytest.skip("not a wrapper")
        assert clashes(method) == []
        assert vars(type(method)).keys() & MEMBERS, "a wrapper sets one member or more"
        inner, outer = method.over.needs(), method.needs()
        assert set(inner.learner) <= set(outer.learner)
        assert set(inner.teacher) <= set(outer.teacher)
        assert outer.views >= inner.views
        assert outer.probe or not inner.probe
        assert outer.hard_labels or not inner.hard_labels or "loss" in vars(type(method))

    def test_a_wrapper_keeps_the_features_and_heads_of_any_method(self, method: Method) -> None:
        if not isinstance(method, Wrapper):
            pytest.skip("not a wrapper")
        try:
            problem = Problem(dataclasses.replace(method, over=Hint()))
        except (Refusal, ValueError) as refused:
            explained(refused)
            return
        if not problem.teachers:
            pytest.skip("this wrapper's learner has no teacher")
        terms = problem.terms(problem.batch(epoch=EPOCHS // 2))
        assert "hint" in terms or changes_all(method, "loss")
        total(terms).backward()
        if "hint" in terms:
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in problem.heads.parameters())
            (shape,) = {problem.profile.taps["pooled"]}
            assert any(value.shape[-1:] == shape for value in problem.heads.state_dict().values())


def changes_all(method: Wrapper, member: str) -> bool:
    """Whether a wrapper replaces a member instead of extending that of what it wraps."""
    return changes(method, member) and member in vars(type(method)) and member not in method.extends


def supervised_names(problem: Problem) -> set[str]:
    """How the task calls the terms of learning without a teacher: {"ce"}."""
    given = problem.batch()
    learner, _ = problem.outs(given.x)
    return set(given.task.supervised(learner.rows.detach(), given.targets))


def names_of(method: Method) -> list[str] | None:
    """The registered names of a method and of what it wraps; None where one has none (a class inside a test)."""
    found = [plugins.name_of(type(link)) for _, link in chain(method)]
    return None if any(":" in name for name in found) else found


def _missing(plan: Plan, roles: tuple[str, ...]) -> list[str]:
    return [role for role in plan.roles if role not in roles and role not in plan.copies]


def _check(plan: Plan, roles: tuple[str, ...]) -> None:
    assert plan.stages
    assert set(plan.answer) <= set(plan.learners), "who answers is trained"
    assert set(plan.answer) & set(plan.stages[-1].learners), "the last stage trains nobody who answers"
    assert not set(plan.copies) & set(roles)
    assert set(plan.copies.values()) <= set(roles)
    taught = set(plan.frozen)
    for stage in plan.stages:
        assert stage.share > 0
        for learner, teachers in stage.learners.items():
            assert learner not in teachers
            assert set(teachers) <= taught | set(stage.learners), "a teacher must be trained before it teaches"
        taught |= set(stage.learners)

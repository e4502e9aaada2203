"""The `tune` section: metrics exist and are not test scores; the space names real fields with values they accept.

A key of `space` is a knob (`temperature`), a wrapped method's knob (`over.temperature`), a field of the recipe
(`recipe.optimizer.lr`), or the student's `student.model` and `student.options.<name>`. Its value is a list, or
`{choices: [...]}`, or `{low, high, log, step}`; `when: {other_key: value or list}` makes it conditional.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from kdbench.errors import did_you_mean
from kdbench.method import Method, chain, knobs
from kdbench.result import Cost
from kdbench.suite import search_rules
from kdbench.suite.fields import RecipeOverride
from kdbench.suite.knobs import method_model
from kdbench.suite.nodes import Node, Problems, kind
from kdbench.suite.sentences import annotation_at, fields, is_model, report
from kdbench.tasks import Task

COSTS = tuple(name for name in Cost.__dataclass_fields__ if name not in ("trials", "epochs"))
STATIC = ("parameters", "macs", "epochs")  # known before anything is trained
RANGE = ("low", "high", "log", "step")
ENTRY = (*RANGE, "choices", "when")


def check(root: Node, methods: dict[str, Method], task: type[Task] | None, problems: Problems) -> None:
    tune = root.get("tune")
    if tune is None or not isinstance(tune.value, dict):
        return
    _metrics(tune, task, problems)
    _budget(tune, problems)
    space = tune.get("space")
    if space is not None and isinstance(space.value, dict):
        targets = _Targets(methods, problems.touch(("methods",)))
        for key, node in space.value.items():
            _Entry(root, key, node, targets, problems).check(space.value)
    search_rules.check(tune, methods, task, problems)


def _metrics(tune: Node, task: type[Task] | None, problems: Problems) -> None:
    known = (*(f"val/{metric.name}" for metric in (task.metrics if task else ())), *COSTS)
    objectives = tune.get("objectives")
    items = objectives.value if objectives is not None and isinstance(objectives.value, list) else []
    named: list[tuple[tuple[str | int, ...], Node]] = [
        (("tune", "objectives", index), item) for index, item in enumerate(items)
    ]
    if metric := tune.get("metric"):
        named.insert(0, (("tune", "metric"), metric))
    seen: set[str] = set()
    for path, node in named:
        name = node.value
        if not isinstance(name, str):
            continue
        if name.startswith("test/"):
            sentence = f"'{name}' is a test score, and the test split must not choose anything: use 'val/{name[5:]}'"
            problems.add(node.mark, path, sentence)
        elif task is not None and name not in known:
            problems.add(node.mark, path, f"unknown metric '{name}'{did_you_mean(name, known)}")
        elif path[1] == "objectives" and name in seen:
            problems.add(node.mark, path, f"objective '{name}' is given twice")
        if path[1] == "objectives":
            seen.add(name)
    constraints = tune.get("constraints")
    for name, node in (constraints.value if constraints and isinstance(constraints.value, dict) else {}).items():
        if name not in STATIC:
            listed = f"{', '.join(STATIC[:-1])} and {STATIC[-1]}"
            sentence = f"cannot be bounded: only {listed} are known before training{did_you_mean(name, STATIC)}"
            problems.add(node.key or node.mark, ("tune", "constraints", name), sentence)


def _budget(tune: Node, problems: Problems) -> None:
    budget, seconds, pruner = tune.get("budget"), tune.get("gpu_seconds"), tune.get("pruner")
    given = seconds is not None and seconds.value is not None
    if budget is not None and budget.value == "gpu_seconds" and not given:
        problems.add(budget.mark, ("tune", "budget"), "needs `gpu_seconds` beside it: how many")
    if given and seconds is not None and (budget is None or budget.value == "trials"):
        problems.add(seconds.mark, ("tune", "gpu_seconds"), "has no effect without `budget: gpu_seconds`")
    objectives = tune.get("objectives")
    many = objectives is not None and isinstance(objectives.value, list) and len(objectives.value) > 1
    if pruner is not None and many and pruner.value in ("hyperband", "median"):
        problems.add(pruner.mark, ("tune", "pruner"), "cannot prune with several objectives: write `pruner: none`")


@dataclass(frozen=True)
class _Target:
    """One field that a key of the space may set: `model` has the field at `steps`."""

    model: type[BaseModel]
    steps: tuple[str, ...]


class _Targets:
    """What the keys of a space may name."""

    def __init__(self, methods: dict[str, Method], incomplete: bool) -> None:
        self.incomplete = incomplete  # some method is wrong: a knob may be one of its
        self.knobs: dict[str, list[_Target]] = {}
        for method in methods.values():
            for key, target in (
                (prefix + name, _Target(method_model(type(link)), (name,)))
                for prefix, link in chain(method)
                for name in knobs(link)
            ):
                self.knobs.setdefault(key, [])
                if target not in self.knobs[key]:
                    self.knobs[key].append(target)

    def find(self, key: str) -> list[_Target] | str:
        """The fields that `key` sets (none: any value will do), or what is wrong with it."""
        first, *rest = key.split(".")
        if key in self.knobs:
            return self.knobs[key]
        if first == "recipe":
            found = annotation_at(RecipeOverride, rest)
            if rest[:1] == ["optimizer"] and rest[1:2] == ["options"] and len(rest) == 3:
                return []
            if found is not None and rest and not is_model(found):
                return [_Target(RecipeOverride, tuple(rest))]
            if found is not None:
                return f"names no single field: write `{key}.<field>`"
            parent = ".".join(key.split(".")[:-1])
            options = [f"{parent}.{name}" for name in fields(RecipeOverride, rest[:-1])]
            return f"unknown field of the recipe{did_you_mean(key, options)}"
        if first == "student":
            if rest == ["model"] or (rest[:1] == ["options"] and len(rest) == 2):
                return []
            return "of the student, only `student.model` and `student.options.<name>` can be tuned"
        if first in ("teacher", "pairs", "data", "seeds"):
            return f"`{first}` cannot be tuned: it is the same for all trials and methods"
        if self.incomplete:
            return []
        return f"no method of the suite has this knob{did_you_mean(key, [*self.knobs, 'recipe.optimizer.lr'])}"


class _Entry:
    def __init__(self, root: Node, key: str, node: Node, targets: _Targets, problems: Problems) -> None:
        self.root, self.key, self.node = root, key, node
        self.targets, self.problems = targets, problems
        self.path: tuple[str | int, ...] = ("tune", "space", key)

    def check(self, space: dict[str, Node]) -> None:
        found = self.targets.find(self.key)
        if isinstance(found, str):
            self._add(self.node.key or self.node.mark, self.path, found)
            found = []
        value = self.node.value
        if isinstance(value, list):
            self._choices(self.node, self.path, found)
            return
        if not isinstance(value, dict):
            got = kind(self.node.plain())
            self._add(self.node.mark, self.path, f"expects a list of values or {{low: ..., high: ...}}, got {got}")
            return
        for name, node in value.items():
            if name not in ENTRY:
                sentence = f"unknown field{did_you_mean(name, ENTRY)}"
                self._add(node.key or node.mark, (*self.path, name), sentence)
        if "when" in value:
            self._when(value["when"], space)
        if "choices" in value:
            clash = next((name for name in RANGE if name in value), None)
            if clash:
                self._add(value[clash].key or self.node.mark, (*self.path, clash), "has no place beside `choices`")
            self._choices(value["choices"], (*self.path, "choices"), found)
        elif any(name in value for name in RANGE) or not value:
            self._range(value, found)
        elif self.key not in self.targets.knobs:  # a knob has a range of its own
            self._add(self.node.where, self.path, "needs `low` and `high`, or `choices`")

    def _range(self, value: dict[str, Node], found: list[_Target]) -> None:
        before = len(self.problems.found)
        for name in ("low", "high"):
            if name not in value:
                self._add(self.node.where, self.path, f"needs `{name}`")
        for name in ("low", "high", "step"):
            node = value.get(name)
            if node is None:
                continue
            if isinstance(node.value, bool) or not isinstance(node.value, int | float):
                self._add(node.where, (*self.path, name), f"expects a number, got {kind(node.plain())}")
            elif name != "step":
                self._accepts(node, (*self.path, name), found)
            elif not node.value > 0:
                self._add(node.mark, (*self.path, name), f"must be more than 0, got {kind(node.value)}")
        log = value.get("log")
        if log is not None and not isinstance(log.value, bool):
            self._add(log.where, (*self.path, "log"), f"expects true or false, got {kind(log.plain())}")
        if len(self.problems.found) > before:
            return
        low, high = value["low"], value["high"]
        if not low.value < high.value:
            self._add(high.mark, (*self.path, "high"), f"must be more than `low` ({low.value:g}), got {high.value:g}")
        if log is not None and log.value:
            if low.value <= 0:
                self._add(low.mark, (*self.path, "low"), "must be more than 0 on a logarithmic scale")
            if "step" in value:
                self._add(value["step"].mark, (*self.path, "step"), "has no place beside `log: true`")

    def _choices(self, node: Node, path: tuple[str | int, ...], found: list[_Target]) -> None:
        if not isinstance(node.value, list) or not node.value:
            self._add(node.where, path, "expects a list with at least one value")
            return
        seen: list[Any] = []
        for index, item in enumerate(node.value):
            plain = item.plain()
            if any(plain == other and type(plain) is type(other) for other in seen):
                self._add(item.mark, (*path, index), f"{kind(plain)} is given twice")
            seen.append(plain)
            if self.key == "student.model" and not (isinstance(plain, str) and plain):
                self._add(item.where, (*path, index), f"expects the name of a model, got {kind(plain)}")
            self._accepts(item, (*path, index), found)

    def _when(self, node: Node, space: dict[str, Node]) -> None:
        path = (*self.path, "when")
        if not isinstance(node.value, dict) or not node.value:
            got = kind(node.plain())
            self._add(node.where, path, f"expects a map such as {{other_key: value}}, got {got}")
            return
        for name, item in node.value.items():
            mark = item.key or item.mark
            if name == self.key:
                self._add(mark, (*path, name), "depends on itself")
                continue
            found = self.targets.find(name)
            if isinstance(found, str) and name not in space:
                self._add(mark, (*path, name), f"{found}; `when` names a key of the space or a knob")
            elif not isinstance(found, str):
                values = item.value if isinstance(item.value, list) else [item]
                for index, option in enumerate(values):
                    inside = (*path, name, index) if isinstance(item.value, list) else (*path, name)
                    self._accepts(option, inside, found)

    def _accepts(self, node: Node, path: tuple[str | int, ...], found: list[_Target]) -> None:
        """A value is fine where one of the fields that the key names accepts it."""
        errors: list[tuple[_Target, ValidationError]] = []
        for target in found:
            plain: Any = node.plain()
            for step in reversed(target.steps):
                plain = {step: plain}
            try:
                target.model.model_validate(plain)
                return
            except ValidationError as refused:
                errors.append((target, refused))
        if errors:
            target, error = errors[0]
            # The finding's own path ends in the field; the file has it elsewhere, at `path`.
            report(error, target.model, self.root, self.problems, at=path, drop=len(target.steps))

    def _add(self, mark: Any, path: tuple[str | int, ...], sentence: str) -> None:
        self.problems.add(mark, path, sentence)


def student_models(root: Node) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    """Every model's name that `tune.space` offers for the student."""
    path: tuple[str | int, ...] = ("tune", "space", "student.model")
    node = root.at(path)
    if node is not None and isinstance(node.value, dict):
        path = (*path, "choices")
        node = root.at(path)
    for index, item in enumerate(node.value if node is not None and isinstance(node.value, list) else ()):
        yield (*path, index), item

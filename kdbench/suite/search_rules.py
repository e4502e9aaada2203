"""What the fields of a `tune` section say together: pruner and metric, sampler and space, conditions in a circle."""

from __future__ import annotations

from collections.abc import Iterator

from kdbench.method import Method, chain, knobs
from kdbench.suite.fields import RecipeOverride
from kdbench.suite.nodes import Node, Problems
from kdbench.suite.schema import knob_annotation
from kdbench.suite.sentences import annotation_at, bare, is_whole
from kdbench.tasks import Task


def followed(task: type[Task]) -> tuple[str, ...]:
    """Scores that are measured while a training runs."""
    return tuple(f"val/{name}" for name in task.followed)


def check(tune: Node, methods: dict[str, Method], task: type[Task] | None, problems: Problems) -> None:
    given = tune.get("space")
    space = given.value if given is not None and isinstance(given.value, dict) else {}
    _pruner(tune, task, problems)
    _circles(space, problems)
    _epochs(tune, space, problems)
    _finite(tune, space, methods, problems)


def _pruner(tune: Node, task: type[Task] | None, problems: Problems) -> None:
    """A pruner needs numbers while a training runs; cmaes one objective."""
    pruner, metric, sampler = tune.get("pruner"), tune.get("metric"), tune.get("sampler")
    seen = followed(task) if task else ()
    name = metric.value if metric is not None and metric.value is not None else next(iter(seen), None)
    if task and pruner is not None and pruner.value in ("hyperband", "median") and name not in seen:
        known = " and ".join(seen)
        problems.add(
            pruner.mark, ("tune", "pruner"), f"can follow {known} only, which are measured while training runs"
        )
    objectives = tune.get("objectives")
    many = objectives is not None and isinstance(objectives.value, list) and len(objectives.value) > 1
    if sampler is not None and sampler.value == "cmaes" and many:
        problems.add(sampler.mark, ("tune", "sampler"), "'cmaes' takes one objective: use 'tpe' or 'gp' for several")


def _epochs(tune: Node, space: dict[str, Node], problems: Problems) -> None:
    if "recipe.epochs" in space and (epochs := tune.get("epochs")) is not None and epochs.value is not None:
        node = space["recipe.epochs"]
        sentence = "has no place beside `tune.epochs`, which sets the epochs of every trial"
        problems.add(node.key or node.mark, ("tune", "space", "recipe.epochs"), sentence)


def _circles(space: dict[str, Node], problems: Problems) -> None:
    """Conditions that wait for each other."""

    def asks(key: str) -> list[str]:
        node = space.get(key)
        when = node.value.get("when") if node is not None and isinstance(node.value, dict) else None
        return list(when.value) if when is not None and isinstance(when.value, dict) else []

    for key, node in space.items():
        seen, left = [key], [name for name in asks(key) if name != key]
        while left:
            name = left.pop()
            if name == key:
                chain = " -> ".join([*seen, key])
                problems.add(node.key or node.mark, ("tune", "space", key, "when"), f"goes in a circle ({chain})")
                return
            if name not in seen:
                seen.append(name)
                left += asks(name)


def _finite(tune: Node, space: dict[str, Node], methods: dict[str, Method], problems: Problems) -> None:
    """A grid is made of what the space lists, and that must be finite."""
    sampler = tune.get("sampler")
    if sampler is None or sampler.value != "grid":
        return
    if not space:
        problems.add(
            sampler.mark, ("tune", "sampler"), "'grid' needs `tune.space`: what to try, as lists or with a `step`"
        )
    endless = {key for method in methods.values() for key in _endless(method)}
    for key, node in space.items():
        value = node.value
        if not isinstance(value, dict) or "choices" in value or "step" in value:
            continue
        if ("low" in value and not _whole(key, value, methods)) or ("low" not in value and key in endless):
            sentence = "is a continuous range: a grid needs a list, or a `step`"
            problems.add(node.key or node.mark, ("tune", "space", key), sentence)


def _whole(key: str, value: dict[str, Node], methods: dict[str, Method]) -> bool:
    """Whether a range without a step has steps of one: its ends and its field are whole numbers."""
    log, ends = value.get("log"), [value[name].value for name in ("low", "high") if name in value]
    if not all(isinstance(end, int) for end in ends) or (log is not None and log.value):
        return False
    if key.startswith("recipe."):
        return is_whole(annotation_at(RecipeOverride, key.split(".")[1:]))
    kinds = [found for method in methods.values() if (found := knob_annotation(method, key)) is not None]
    return all(map(is_whole, kinds))


def _endless(method: Method) -> Iterator[str]:
    """Knobs whose declared range is continuous."""
    for prefix, link in chain(method):
        for name, field in knobs(link).items():
            meta, kinds = field.metadata["knob"], bare(knob_annotation(link, name))
            ranged = meta["low"] is not None and meta["high"] is not None and not meta["choices"]
            if ranged and (kinds == [float] or (kinds == [int] and meta["log"])):
                yield prefix + name

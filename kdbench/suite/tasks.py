"""Which task a suite is about, and whether its methods and gates fit it; nothing is loaded but the task's class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdbench import plugins
from kdbench.errors import did_you_mean
from kdbench.method import Method
from kdbench.suite.checks import roles
from kdbench.suite.nodes import Node, Problems
from kdbench.tasks import Task


def chosen(root: Node, folder: Path, problems: Problems) -> tuple[str, type[Task] | None]:
    """Name and class of the suite's task: `task`, or what the data set's file declares."""
    given, data = root.get("task"), root.at(("data", "name"))
    if given is not None and isinstance(given.value, str):
        name, node, path = given.value, given, ("task",)
    else:
        known = isinstance(data.value, str) if data is not None else False
        name = plugins.declared_task(data.value, folder) if data is not None and known else plugins.TASK
        node, path = data or root, ("data", "name")  # type: ignore[assignment]
    try:
        return name, plugins.plugin_class("tasks", name, folder, Task)  # type: ignore[type-abstract]
    except LookupError as error:
        problems.add(node.where, path, str(error.args[0]))
        return name, None


def check(
    root: Node,
    methods: dict[str, Method],
    cells: Iterable[tuple[str, str]],
    task: type[Task] | None,
    name: str,
    problems: Problems,
) -> None:
    """Methods of the suite's cells can do the task; gates name metrics that it has."""
    if task is None:
        return
    for label in dict.fromkeys(label for _, label in cells if label in methods):
        if sentence := task.misfit(methods[label].needs()):
            node = root.at(("methods", label)) or root
            problems.add(
                node.key or node.where,
                ("methods", label),
                f"cannot do the suite's task, {name}: it {sentence}; remove it, or exclude its triples "
                "(`kdbench show tasks` lists what fits)",
            )
    known = [metric.name for metric in task.metrics]
    for item in roles(root):
        if (old := item.field("min_top1")) is not None and old.value is not None and "top1" not in known:
            sentence = f"the task {name} has no top1: write `gate`, for its {task.headline.name} or {{metric: value}}"
            problems.add(old.where, (*item.path, "min_top1"), sentence)
        gate = item.field("gate")
        for metric, node in (gate.value if gate is not None and isinstance(gate.value, dict) else {}).items():
            if metric not in known:
                sentence = f"the task {name} has no metric '{metric}'{did_you_mean(metric, known)}; it has "
                problems.add(node.key or node.where, (*item.path, "gate", metric), sentence + ", ".join(known))

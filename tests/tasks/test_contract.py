"""The contract that every task inherits, for each file of kdbench/tasks/, by discovery."""

from __future__ import annotations

from pathlib import Path

from kdbench import plugins
from kdbench.tasks import Task
from kdbench.testing import TaskContract
from kdbench.testing.problem import Numbers


class TestEveryTask(TaskContract):
    cases = {  # noqa: RUF012
        name: plugins.plugin_class("tasks", name, Path(), Task)(10)  # type: ignore[type-abstract]
        for name in plugins.builtin("tasks")
    }


class TestNumbers(TaskContract):
    """The task of numbers that the contract of methods uses."""

    task = Numbers(3)

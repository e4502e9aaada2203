"""Suite file -> Suite: read, extended, validated whole. Every mistake is told at once, with file, line and column.

Nothing is trained, downloaded or imported from torch here; only the Python files of methods are executed, because
their knobs are part of the file's grammar.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench import plugins
from kdbench.errors import UserError, near
from kdbench.files import is_file
from kdbench.method import Method, chain
from kdbench.suite import checks, fields, search_checks, tasks
from kdbench.suite.configure import configure
from kdbench.suite.nodes import Node, Path_, Problems
from kdbench.suite.schema import schema, schema_text
from kdbench.suite.sentences import report
from kdbench.suite.yaml import read
from kdbench.tasks import Task

__all__ = ["Suite", "load", "schema", "schema_text"]


@dataclass(frozen=True)
class Suite:
    """A suite file that has been read, with its methods built and its cells listed."""

    file: fields.SuiteFile
    path: Path
    methods: dict[str, Method]
    method_names: dict[str, str]  # label -> registered name
    task: type[Task]
    task_name: str
    cells: tuple[tuple[str, str], ...]  # (pair, label), after triples and exclude, in the file's order
    notes: tuple[str, ...] = ()  # sentences worth a warning
    _root: Node | None = field(default=None, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def says(self, *path: str | int) -> bool:
        """Whether the file itself (or one it extends) sets that field."""
        return self._root is not None and self._root.at(path) is not None

    def where(self, *path: str | int) -> str:
        """ "file:line:col" of a field, or of the nearest thing around it that the file has."""
        return str(self._root.nearest(path).where) if self._root else str(self.path)


def load(path: Path) -> Suite:
    """Read and check a suite file.

    Raises:
        UserError: one line for each mistake, `file:line:col: path: sentence`.
    """
    path = Path(path)
    problems = Problems()
    root = _extended(path, problems, ())
    file = _validated(root, problems)
    methods, names = configure(root, path.parent, problems)
    cells = checks.cells(root, problems)
    checks.file_names(root, problems)
    checks.references(root, path.parent, problems)
    checks.numbers(root, problems)
    task_name, task = tasks.chosen(root, path.parent, problems)
    tasks.check(root, methods, cells, task, task_name, problems)
    checks.recipes(root, problems)
    checks.seeds(root, problems)
    checks.plans(root, methods, cells, problems)
    checks.controls(root, methods, problems)
    search_checks.check(root, methods, task, problems)
    problems.stop_if_any()
    assert file is not None
    assert task is not None
    return Suite(file, path, methods, names, task, task_name, cells, _hidden(file, methods), root)


def _hidden(file: fields.SuiteFile, methods: Mapping[str, Method]) -> tuple[str, ...]:
    """A sentence for each installed plug-in that is not what the suite gets by its name."""
    used = {
        "data": {file.data.name},
        "tasks": {file.task} if file.task else set(),
        "models": {model.model for pair in file.pairs.values() for model in pair.roles.values()},
        "methods": {plugins.name_of(type(link)) for method in methods.values() for _, link in chain(method)},
    }
    return tuple(
        conflict.why for kind, names in used.items() for conflict in plugins.conflicts(kind) if conflict.name in names
    )


def _validated(root: Node, problems: Problems) -> fields.SuiteFile | None:
    try:
        return fields.SuiteFile.model_validate(root.plain())
    except ValidationError as error:
        report(error, fields.SuiteFile, root, problems)
        return None


def _extended(path: Path, problems: Problems, chain: tuple[Path, ...]) -> Node:
    """The file's map, merged over the one it extends."""
    root = read(path, problems)
    extends = root.value.get("extends")
    if extends is None or not isinstance(extends.value, str):
        return root  # a wrong type is reported with the other fields
    if Path(extends.value).is_absolute():
        raise UserError(f"{extends.mark}: extends: expects a path relative to this file, got '{extends.value}'")
    base_path = Path(os.path.normpath(path.parent / extends.value))
    chain = (*chain, path)
    if base_path.resolve() in [link.resolve() for link in chain]:
        circle = " -> ".join(link.name for link in (*chain, base_path))
        raise UserError(f"{extends.mark}: extends: goes in a circle ({circle})")
    if not is_file(base_path):
        raise UserError(f"{extends.mark}: extends: no such file: {extends.value}{near(base_path)}")
    base = _extended(base_path, problems, chain)
    return merged(_moved(base, base_path.parent, path.parent), root)


def merged(base: Node, over: Node) -> Node:
    """Maps merge, everything else replaces; positions stay those of the file each value comes from."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    entries: dict[str, Node] = dict(base.value)
    for name, node in over.value.items():
        entries[name] = merged(entries[name], node) if name in entries else node
    return replace(over, value=entries)


def _moved(node: Node, old: Path, new: Path) -> Node:
    """References to files (`./net.py:build`, `weights`) of a suite in folder `old`, as seen from folder `new`."""
    if old.resolve() == new.resolve():
        return node

    def reference(text: str) -> str:
        return "./" + Path(os.path.relpath(old / text, new)).as_posix()

    def walk(node: Node, path: Path_) -> Node:
        value: Any = node.value
        if isinstance(value, Mapping):
            return replace(node, value={name: walk(item, (*path, name)) for name, item in value.items()})
        if isinstance(value, list):
            return replace(node, value=[walk(item, path) for item in value])
        if not isinstance(value, str) or not path:
            return node
        if path[-1] == "weights" or (path[-1] != "extends" and plugins.is_file(value)):
            return replace(node, value=reference(value))
        return node

    return walk(node, ())

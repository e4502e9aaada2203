"""Plug-ins of installed packages: the entry points `kdbench.methods`, `.models`, `.data` and `.tasks`.

Here is who names what and the digest of its source; `plugins` imports it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

KINDS = {"methods": "method", "models": "model", "data": "data set", "tasks": "task"}  # kind -> what one is called


@dataclass(frozen=True)
class Conflict:
    """A plug-in that is not used, because something else has its name."""

    name: str
    why: str  # a sentence


@dataclass(frozen=True)
class Points:
    """The entry points of one kind, by name."""

    kind: str
    chosen: dict[str, EntryPoint]
    conflicts: tuple[Conflict, ...]

    def title(self, name: str) -> str:
        """ "method 'mine' of package kdbench-mine" """
        return _title(self.kind, self.chosen[name])

    def canonical(self, name: str) -> str:
        """The first of the names that are given to the same object."""
        return next(other for other, point in self.chosen.items() if point.value == self.chosen[name].value)


def points(kind: str, owner: Callable[[str], str | None]) -> Points:
    """What is installed of a kind; `owner` says who else has a name: "kdbench", "timm" or nobody."""
    chosen: dict[str, EntryPoint] = {}
    conflicts = []
    for point in sorted(entry_points(group=f"kdbench.{kind}"), key=lambda p: (p.name, package(p), p.value)):
        first = owner(point.name) or (package(chosen[point.name]) if point.name in chosen else None)
        if first is None:
            chosen[point.name] = point
        else:
            why = f"{_title(kind, point)} is not used: {first} has one of that name"
            conflicts.append(Conflict(point.name, why))
    return Points(kind, chosen, tuple(conflicts))


def package(point: EntryPoint) -> str:
    """ "package kdbench-mine", or the module where the package is unknown."""
    return f"package {point.dist.name}" if point.dist else f"module {point.module}"


def _title(kind: str, point: EntryPoint) -> str:
    return f"{KINDS[kind]} '{point.name}' of {package(point)}"


@cache
def module_sha(name: str) -> str | None:
    """sha256 (16 hex digits) of a module's source, of a package's Python files; None where there is no file of it.

    The module itself is not imported, packages around it are.

    Raises:
        ImportError: there is no such module, or a package around it fails.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # made by hand, without a place
        return None
    if spec is None:
        raise ModuleNotFoundError(f"No module named '{name}'")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if folders:
        digest = hashlib.sha256()
        for folder in folders:
            for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).as_posix()):
                text = path.read_bytes()
                digest.update(f"{path.relative_to(folder).as_posix()}\0{len(text)}\0".encode() + text)
        return digest.hexdigest()[:16]
    if spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]

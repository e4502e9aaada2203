"""Values of a suite file that remember where they stand, and the mistakes found in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.errors import UserError

Path_ = Sequence[str | int]


@dataclass(frozen=True)
class Mark:
    """A position, line and column counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Node:
    """A value, where it stands, and where the key it stands under does."""

    value: Any  # dict[str, Node], list[Node], or a scalar: str, int, float, bool, None
    mark: Mark
    key: Mark | None = None
    size: int = 1  # values in it, aliases expanded

    @property
    def where(self) -> Mark:
        """The value of a scalar; the key of a map or list, which is where a reader looks for it."""
        return self.key if self.key and isinstance(self.value, dict | list) else self.mark

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def get(self, step: str | int) -> Node | None:
        if isinstance(self.value, dict):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def at(self, path: Path_) -> Node | None:
        """The node at `path`, or None."""
        node: Node | None = self
        for step in path:
            node = node.get(step) if node else None
        return node

    def nearest(self, path: Path_) -> Node:
        """The deepest node on the way to `path`."""
        node = self
        for step in path:
            child = node.get(step)
            if child is None:
                break
            node = child
        return node


def dotted(path: Path_) -> str:
    """("triples", 0, "pair") -> "triples[0].pair"."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


class Problems:
    """The user's mistakes, collected: all are told at once."""

    def __init__(self) -> None:
        self.files: list[str] = []  # in the order they were read: a suite comes before what it extends
        self.found: dict[tuple[Mark, str], tuple[str | int, ...]] = {}  # (position, line) -> path, no line twice

    def add(self, mark: Mark, path: Path_, sentence: str) -> None:
        text = f"{dotted(path)}: {sentence}" if path else sentence
        self.found.setdefault((mark, text), tuple(path))

    def touch(self, path: Path_) -> bool:
        """Whether something at, under or above `path` is wrong; the root's own mistakes aside."""
        path = tuple(path)
        return any(found and found[: len(path)] == path[: len(found)] for found in self.found.values())

    def lines(self) -> list[str]:
        """In the order of the text, file by file."""
        order = {file: index for index, file in enumerate(self.files)}
        ordered = sorted(self.found, key=lambda item: (order[item[0].file], item[0].line, item[0].column))
        return [f"{mark}: {text}" for mark, text in ordered]

    def stop_if_any(self) -> None:
        if self.found:
            raise UserError(*self.lines())


def kind(value: Any) -> str:
    """A value as a user knows it: "a map", "a list", "nothing", "'ten'"."""
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

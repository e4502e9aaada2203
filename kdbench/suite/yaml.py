"""YAML 1.2 text -> plain data that remembers where every value stands.

Scalars follow the core schema of YAML 1.2 (section 10.3.2): `1e-3` is a number, `on` and `1_000` are strings, `012`
is twelve. Anchors and aliases work; tags, merge keys and a second document are refused: a suite file is data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml import events as ev
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdbench.errors import SUFFIXES, UserError, did_you_mean, near

DEPTH, NODES = 50, 200_000  # deeper or larger (after aliases are expanded) is a mistake or an attack

_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = re.compile(r"\.(?:nan|NaN|NAN)")

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
            raise UserError("\n".join(self.lines()))


def read(path: Path, problems: Problems) -> Node:
    """The map in a YAML file. Duplicate keys and the like are added to `problems`.

    Raises:
        UserError: the file cannot be read, or is not YAML at all, or its top level is not a map.
    """
    file = str(path)
    problems.files.append(file)
    text = _text(path)
    builder = _Builder(file, problems)
    try:
        root = builder.root(text)
    except MarkedYAMLError as error:
        raise UserError(_syntax(file, error)) from None
    except YAMLError as error:  # a character that YAML does not allow has a position in the text only
        position = getattr(error, "position", 0)
        mark = Mark(file, text.count("\n", 0, position) + 1, position - (text.rfind("\n", 0, position) + 1) + 1)
        raise UserError(f"{mark}: a control character (U+{ord(text[position]):04X}) cannot stand here") from None
    if root is None:
        raise UserError(f"{file}:1:1: is empty: a suite file needs name, data, recipe, pairs and methods")
    if not isinstance(root.value, dict):
        raise UserError(f"{root.mark}: expects a map (`name: ...`) at the top level, got {kind(root.value)}")
    if root.size > NODES:
        raise UserError(f"{root.mark}: its aliases expand to {root.size:.3g} values; at most {NODES} are read")
    return root


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


def _text(path: Path) -> str:
    if path.is_dir():
        inside = sorted(item.name for item in path.iterdir() if item.suffix in SUFFIXES)
        hint = f"; it has {', '.join(inside[:5])}" if inside else ""
        raise UserError(f"{path}: is a folder: name a suite file{hint}")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{near(path)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read: {reason}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise UserError(f"{path}:{line}:{column}: is not UTF-8 text (byte 0x{raw[error.start]:02X})") from None


class _Builder:
    """Composes nodes from the parser's events, so that scalars and positions are ours to decide."""

    def __init__(self, file: str, problems: Problems) -> None:
        self.file, self.problems = file, problems
        self.anchors: dict[str, Node] = {}

    def root(self, text: str) -> Node | None:
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 2)
        self.events: Iterator[Any] = iter(yaml.parse(text))
        root = None
        for event in self.events:
            if isinstance(event, ev.DocumentStartEvent):
                if root is not None:
                    raise UserError(f"{self._mark(event)}: a second document starts here: a suite file is one document")
                root = self._node(next(self.events), (), None)
        if root is not None and root.value is None:
            return None
        return root

    def _mark(self, event: Any) -> Mark:
        return Mark(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _node(self, event: Any, path: tuple[str | int, ...], key: Mark | None) -> Node:
        mark = self._mark(event)
        if len(path) > DEPTH:
            raise UserError(f"{mark}: is nested more than {DEPTH} deep")
        if isinstance(event, ev.AliasEvent):
            if event.anchor not in self.anchors:
                hint = did_you_mean(event.anchor, self.anchors)
                raise UserError(f"{mark}: the alias *{event.anchor} has no complete anchor before it{hint}")
            return replace(self.anchors[event.anchor], mark=mark, key=key)
        tag = getattr(event, "ctag", None)
        if tag is not None and str(tag):
            self.problems.add(mark, path, f"the tag {_shorthand(str(tag))} is not supported: YAML is data here")
        if isinstance(event, ev.ScalarEvent):
            node = Node(self._scalar(event, path, mark), key if key and not event.value and event.implicit[0] else mark)
            node = replace(node, key=key)
        elif isinstance(event, ev.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(event_ := next(self.events), ev.SequenceEndEvent):
                items.append(self._node(event_, (*path, len(items)), None))
            node = Node(items, mark, key, 1 + sum(item.size for item in items))
        else:
            entries = self._entries(path)
            node = Node(entries, mark, key, 1 + sum(item.size for item in entries.values()))
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _entries(self, path: tuple[str | int, ...]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), ev.MappingEndEvent):
            name_node = self._node(event, (*path, "?"), None)
            name, mark = name_node.value, name_node.mark
            scalar = isinstance(event, ev.ScalarEvent)
            if scalar and type(name) is int and event.value == str(name):
                name = event.value  # `{1: 72}`: a count is its own text
            value = self._node(next(self.events), (*path, str(name) if scalar else "?"), mark)
            if scalar and event.implicit[0] and event.value == "<<":
                sentence = "merge keys (`<<`) are not YAML 1.2: write the fields out, or use `extends`"
                self.problems.add(mark, path, sentence)
            elif not isinstance(name, str):
                quote = f': write "{event.value}"' if scalar else ""
                self.problems.add(mark, path, f"expects text as a key, got {kind(name)}{quote}")
            elif name in entries:
                first = entries[name].key
                line = f" on line {first.line}" if first else ""
                self.problems.add(mark, (*path, name), f"is given twice; the first is{line}")
            else:
                entries[name] = value
        return entries

    def _scalar(self, event: Any, path: tuple[str | int, ...], mark: Mark) -> Any:
        text = event.value
        if not event.implicit[0]:  # quoted, a block, or tagged
            return text
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text):
            return True
        if _FALSE.fullmatch(text):
            return False
        if _INT.fullmatch(text):
            digits = text.lstrip("+-").lstrip("0") if not text.startswith(("0o", "0x")) else text[2:].lstrip("0")
            number = int(text, 0) if text.startswith(("0o", "0x")) else int(text) if len(digits) < 20 else 2**64
            if not -(2**63) <= number < 2**63:
                self.problems.add(mark, path, "is a whole number that does not fit 64 bits")
                return 0
            return number
        if _FLOAT.fullmatch(text):
            return float(text)
        if match := _INFINITE.fullmatch(text):
            return float(f"{match[1]}inf")
        return float("nan") if _NAN.fullmatch(text) else text


def _shorthand(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _syntax(file: str, error: MarkedYAMLError) -> str:
    """A parser's complaint as one sentence."""
    problem, context = str(error.problem or ""), str(error.context or "")
    mark = error.problem_mark or error.context_mark
    if "'\\t'" in problem or "\t" in problem:
        sentence = "a tab cannot indent YAML: use spaces"
    elif match := re.search(r"found character '(.+?)' that cannot start any token", problem):
        sentence = f"a value cannot start with {match[1]}: put it in quotes"
    elif "mapping values are not allowed" in problem:
        sentence = "a second `key: value` on this line: fix the indentation, or put the value in quotes"
    elif "stream end" in problem or "end of stream" in problem:
        sentence = "a bracket or a quote that opens here is not closed"
        mark = error.context_mark or mark
    elif "collection" in context or "block mapping" in context:
        sentence = "the indentation does not fit the lines above"
    else:
        said = re.sub(r"\s+", " ", f"{context} {problem}".strip())
        sentence = f"is not YAML: {said}"
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return f"{file}:{line}:{column}: {sentence}"

"""YAML 1.2 text -> plain data that remembers where every value stands.

Scalars follow the core schema of YAML 1.2 (section 10.3.2): `1e-3` is a number, `on` and `1_000` are strings, `012`
is twelve. Anchors and aliases work; tags, merge keys and a second document are refused: a suite file is data.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.reader import ReaderError

from kdbench.errors import HIDDEN, SUFFIXES, UserError, did_you_mean, near, shown
from kdbench.suite.nodes import Mark, Node, Problems, kind

DEPTH, NODES = 50, 200_000  # deeper or larger (after aliases are expanded) is a mistake or an attack
CORE = {  # what a plain scalar is (YAML 1.2, section 10.3.2); the rest is text
    "null": "null|Null|NULL|~|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


def read(path: Path, problems: Problems) -> Node:
    """The map in a YAML file. Duplicate keys and the like are added to `problems`.

    Raises:
        UserError: the file cannot be read, or is not YAML at all, or its top level is not a map.
    """
    file = str(path)
    problems.files.append(file)
    text = _text(path)
    top, loader = None, None
    try:
        loader = _Loader(text)
        top = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise UserError(_syntax(file, error)) from None
    except ReaderError as error:  # PyYAML's own position counts characters of the whole text
        mark, code = _after(file, text[: error.position]), ord(text[error.position])
        raise UserError(f"{mark}: a control character (U+{code:04X}) cannot stand here") from None
    except (ValueError, OverflowError):  # chr() of "\\UFFFFFFFF"
        assert loader is not None
        raise UserError(f"{_mark(file, loader.get_mark())}: there is no character of that number") from None
    root = _Builder(file, problems).node(top, (), None) if top is not None else None
    if root is None or root.value is None:
        raise UserError(f"{file}:1:1: is empty: a suite file needs name, data, recipe, pairs and methods")
    if not isinstance(root.value, dict):
        raise UserError(f"{root.mark}: expects a map (`name: ...`) at the top level, got {kind(root.value)}")
    if root.size > NODES:
        raise UserError(f"{root.mark}: its aliases expand to {root.size:.3g} values; at most {NODES} are read")
    return root


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        inside = sorted(item.name for item in path.iterdir() if item.suffix in SUFFIXES)
        hint = f"; it has {', '.join(inside[:5])}" if inside else ""
        raise UserError(f"{path}: is a folder: name a suite file{hint}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{near(path)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{shown(str(path), 200)}: cannot be read: {reason}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        raise UserError(f"{_after(str(path), before)}: is not UTF-8 text (byte 0x{raw[error.start]:02X})") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with the scalars of YAML 1.2, a limit of depth, and aliases that keep their own positions."""

    DEFAULT_SCALAR_TAG, DEFAULT_SEQUENCE_TAG, DEFAULT_MAPPING_TAG = "text", "list", "map"
    yaml_implicit_resolvers: ClassVar = {None: [(tag, re.compile(rf"(?:{form})\Z")) for tag, form in CORE.items()]}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event, mark = self.peek_event(), self.peek_event().start_mark
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            if event.anchor not in self.anchors:
                hint = did_you_mean(event.anchor, self.anchors)
                sentence = f"the alias *{event.anchor} has no complete anchor before it{hint}"
                raise yaml.MarkedYAMLError(problem=sentence, problem_mark=mark)
            node = copy.copy(self.anchors[event.anchor])
            node.start_mark = mark
            return node
        if self.depth > DEPTH:
            raise yaml.MarkedYAMLError(problem=f"is nested more than {DEPTH} deep", problem_mark=mark)
        self.depth += 1
        sort = next(sort for sort in ("scalar", "sequence", "mapping") if sort in type(event).__name__.lower())
        node = getattr(self, f"compose_{sort}_node")(None)  # no anchor yet: an alias inside itself is refused
        self.depth -= 1
        if event.anchor:
            self.anchors[event.anchor] = node
        return node


class _Builder:
    """PyYAML's nodes -> ours; what an alias stands for is built once."""

    def __init__(self, file: str, problems: Problems) -> None:
        self.file, self.problems = file, problems
        self.built: dict[int, Node] = {}  # by the identity of a collection's value, which its aliases share

    def node(self, given: yaml.Node, path: tuple[str | int, ...], key: Mark | None) -> Node:
        mark = _mark(self.file, given.start_mark)
        if (known := self.built.get(id(given.value))) and not isinstance(given, yaml.ScalarNode):
            return replace(known, mark=mark, key=key)
        if given.tag not in (*CORE, "text", "list", "map"):
            tag = given.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.add(mark, path, f"the tag {tag} is not supported: YAML is data here")
        if isinstance(given, yaml.ScalarNode):
            absent = given.tag == "null" and not given.value
            return Node(self._scalar(given.value, given.tag, path, mark), key if key and absent else mark, key)
        value: list[Node] | dict[str, Node]
        if isinstance(given, yaml.SequenceNode):
            value = [self.node(item, (*path, index), None) for index, item in enumerate(given.value)]
            size = sum(item.size for item in value)
        else:
            value = self._entries(given, path)
            size = sum(item.size for item in value.values())
        return self.built.setdefault(id(given.value), Node(value, mark, key, 1 + size))

    def _entries(self, given: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, item in given.value:
            scalar = isinstance(key, yaml.ScalarNode)
            named = self.node(key, (*path, "?"), None)
            name, mark = named.value, named.mark
            if scalar and type(name) is int and key.value == str(name):
                name = key.value  # `{1: 72}`: a count is its own text
            value = self.node(item, (*path, str(name) if scalar else "?"), mark)
            if scalar and key.style is None and key.value == "<<":
                sentence = "merge keys (`<<`) are not YAML 1.2: write the fields out, or use `extends`"
                self.problems.add(mark, path, sentence)
            elif not isinstance(name, str):
                quote = f': write "{key.value}"' if scalar else ""
                self.problems.add(mark, path, f"expects text as a key, got {kind(name)}{quote}")
            elif name in entries:
                first = entries[name].key
                line = f" on line {first.line}" if first else ""
                self.problems.add(mark, (*path, name), f"is given twice; the first is{line}")
            else:
                entries[name] = value
        return entries

    def _scalar(self, text: str, tag: str, path: tuple[str | int, ...], mark: Mark) -> Any:
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if tag == "int":
            sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-").lstrip("0")
            base = {"o": 8, "x": 16}.get(digits[:1], 10)
            number = sign * int(digits.lstrip("ox0") or "0", base) if len(digits) < 30 else 2**64
            if -(2**63) <= number < 2**63:
                return number
            self.problems.add(mark, path, "is a whole number that does not fit 64 bits")
            return 0
        if found := HIDDEN.search(re.sub(r"[\n\t]", "", text)):
            self.problems.add(mark, path, f"has a control character (U+{ord(found[0]):04X}) in it: remove it")
        return text


def _after(file: str, before: str) -> Mark:
    """The position behind a piece of text from the file's beginning."""
    return Mark(file, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _mark(file: str, mark: yaml.Mark) -> Mark:
    return Mark(file, mark.line + 1, mark.column + 1)


_SAID = {  # a part of what PyYAML says -> what a user understands, and whether it is told where the thing opens
    "'\\t'": ("a tab cannot indent YAML: use spaces", False),
    "mapping values": ("a second `key: value` on this line: fix the indentation, or put the value in quotes", False),
    "another document": ("a second document starts here: a suite file is one document", False),
    "stream end": ("a bracket or a quote that opens here is not closed", True),
    "end of stream": ("a bracket or a quote that opens here is not closed", True),
    "expected ':'": ("expects `key: value` here", True),
    "block collection": ("the indentation does not fit the lines above", False),
    "block mapping": ("the indentation does not fit the lines above", False),
}


def _syntax(file: str, error: yaml.MarkedYAMLError) -> str:
    """A parser's complaint as one sentence."""
    said = re.sub(r"\s+", " ", f"{error.context or ''} {error.problem}".strip())
    mark, sentence = error.problem_mark, f"is not YAML: {said}" if error.context else said
    if match := re.search(r"character '(.+?)' that cannot start any token", said):
        sentence = f"a value cannot start with {match[1]}: put it in quotes"
    for part, (plain, opening) in _SAID.items():
        if part in said:
            sentence, mark = plain, (opening and error.context_mark) or mark
            break
    return f"{_mark(file, mark)}: {sentence}"

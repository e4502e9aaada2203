"""The `methods` of a suite file -> Method values, each knob checked against its `knob()`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pydantic import ValidationError

from kdbench import plugins
from kdbench.method import Method, Refusal, clashes
from kdbench.suite.knobs import RESERVED, method_model
from kdbench.suite.nodes import Node, Problems, kind
from kdbench.suite.sentences import report


def configure(root: Node, folder: Path, problems: Problems) -> tuple[dict[str, Method], dict[str, str]]:
    """label -> method, and label -> its registered name, for all that can be built; the rest are problems."""
    section = root.get("methods")
    methods: dict[str, Method] = {}
    names: dict[str, str] = {}
    builder = _Builder(root, folder, problems)
    for label, node in (section.value if section and isinstance(section.value, dict) else {}).items():
        path = ("methods", label)
        method, name = builder.build(node, label, path)
        if method is None:
            continue
        sentences = clashes(method)
        if not sentences:
            sentences = _refusals(method)
        for sentence in sentences:
            problems.add(node.where, path, sentence)
        if not sentences:
            methods[label], names[label] = method, name
    return methods, names


def _refusals(method: Method) -> list[str]:
    """A combination that a method refuses already when asked for its needs."""
    try:
        method.needs()
    except Refusal as refusal:
        return [str(refusal)]
    except Exception as error:
        return [f"its needs() fails: {type(error).__name__}: {error}"]
    return []


class _Builder:
    def __init__(self, root: Node, folder: Path, problems: Problems) -> None:
        self.root, self.folder, self.problems = root, folder, problems

    def build(self, node: Node, label: str | None, path: tuple[str | int, ...]) -> tuple[Method | None, str]:
        """`label` is the method's name where `method` is absent; a wrapped method has none."""
        entries = {} if node.value is None else node.value
        if not isinstance(entries, dict):
            self._add(node, path, f"expects a map such as {{method: kd}}, got {kind(node.plain())}")
            return None, ""
        named = entries.get("method")
        if named is not None and not isinstance(named.value, str):
            self._add(named, (*path, "method"), f"expects the name of a method, got {kind(named.plain())}")
            return None, ""
        if named is None and label is None:
            self._add(node, path, "needs `method`: the name of the method to wrap")
            return None, ""
        name = str(named.value if named else label)
        at = named or node
        try:
            cls = plugins.method_class(name, self.folder)
            model = method_model(cls)
        except LookupError as error:
            sentence = str(error.args[0])
            if named is None and entries:
                sentence += "; a label of your own needs `method: <name>` beside its knobs"
            mark = named.mark if named else node.key or node.mark
            self.problems.add(mark, (*path, "method") if named else path, sentence)
            return None, name
        before = len(self.problems.found)
        inner = self._inner(cls, name, node, entries, path)
        values = {}
        try:
            given = model.model_validate({k: v.plain() for k, v in entries.items() if k not in RESERVED})
            values = {knob: getattr(given, knob) for knob in model.model_fields}
        except ValidationError as error:
            report(error, model, self.root, self.problems, at=path, noun="knob")
        if len(self.problems.found) > before:
            return None, name
        try:
            return cls(**values, **({} if inner is None else {"over": inner})), name
        except Exception as error:  # whatever a plug-in's __post_init__ raises is about these knobs
            self._add(at, path, f"'{name}' does not accept these knobs: {error or type(error).__name__}")
            return None, name

    def _inner(
        self, cls: type[Method], name: str, node: Node, entries: dict[str, Node], path: tuple[str | int, ...]
    ) -> Method | None:
        over = entries.get("over")
        if not plugins.is_wrapper(cls):
            if over is not None:
                mark = over.key or over.mark
                self.problems.add(mark, (*path, "over"), f"'{name}' is not a wrapper: remove `over`")
            return None
        if over is None or over.value is None:
            default = next(f for f in dataclasses.fields(cls) if f.name == "over")  # type: ignore[arg-type]
            if default.default is dataclasses.MISSING and default.default_factory is dataclasses.MISSING:
                self._add(node, path, f"'{name}' needs `over`: the method to wrap, for example {{method: kd}}")
            return None
        return self.build(over, None, (*path, "over"))[0]

    def _add(self, node: Node, path: tuple[str | int, ...], sentence: str) -> None:
        self.problems.add(node.where if node.value is not None else node.key or node.mark, path, sentence)

"""Pydantic's findings as sentences that a user of suite files understands, with the position of the value."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError

from kdbench.errors import did_you_mean
from kdbench.suite.nodes import Node, Problems, kind

Step = str | int

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a map",
    "mapping": "a map",
    "model": "a map",
}
_OWN_STEPS = ("<map>", "<bool>", "[key]")  # the tags of `spec.Train`, and how pydantic calls the key of a map
_CLASSES = {"Model": "a model's name or a map", "Reported": "a number or a map"}


def report(
    error: ValidationError,
    model: Any,
    root: Node,
    problems: Problems,
    *,
    at: Sequence[Step] = (),
    noun: str = "field",
    drop: int = 0,
) -> None:
    """Add every finding of `error` to `problems`.

    Args:
        model: what was validated, for "did you mean".
        root: the whole file.
        at: where in the file the validated value stands.
        noun: what the entries of the map are called.
        drop: so many steps of a finding's own path are not in the file.
    """
    for finding in error.errors(include_url=False):
        steps, is_key = _steps(finding["loc"], root, at, drop)
        path: tuple[Step, ...] = (*at, *steps[drop:])
        node = root.nearest(path)
        if finding["type"] == "too_short" and len(node.value) >= finding["ctx"]["min_length"]:
            continue  # pydantic counts the valid entries only; the others have lines of their own
        mark = node.where
        if is_key or finding["type"] == "extra_forbidden":
            mark = node.key or node.mark
        if finding["type"] == "missing":
            path = path[:-1]
        while len(path) > len(at) and root.at(path) is None:  # the member of a union, or an override's absent field
            path = path[:-1]
        problems.add(mark, path, _sentence(finding, model, steps, None if is_key else root.at(path), noun))


def _steps(loc: Sequence[Step], root: Node, at: Sequence[Step], drop: int) -> tuple[list[Step], bool]:
    """A finding's path without pydantic's own steps (a user's key may look like one), and whether a key is wrong."""
    steps: list[Step] = []
    for step in loc:
        if step in _OWN_STEPS and root.at((*at, *[*steps, step][drop:])) is None:
            continue
        steps.append(step)
    return steps, loc[-1:] == ("[key]",) and steps[-1:] != ["[key]"]


def _sentence(finding: Any, model: Any, steps: list[Step], node: Node | None, noun: str) -> str:
    sort, context = finding["type"], finding.get("ctx", {})
    got = kind(node.plain()) if node is not None else kind(finding["input"])
    if sort == "missing":
        if len(steps) == 4 and steps[0] == "pairs":  # a misspelt field of a pair is taken for a role
            hint = did_you_mean(str(steps[2]), fields(model, steps[:2]))
            if steps[2] not in ("teacher", "student"):
                return f"is taken for a role, which needs `{steps[-1]}`{hint}"
        return f"needs `{steps[-1]}`"
    if sort == "extra_forbidden":
        if steps[-1] == "extends":
            return "`extends` is allowed at the top level only"
        return f"unknown {noun}{did_you_mean(str(steps[-1]), fields(model, steps[:-1]))}"
    if sort == "value_error":
        return str(context["error"])
    if sort == "literal_error":
        options = fields_of_literal(model, steps)
        listed = ", ".join(repr(option) for option in options) or context["expected"]
        return f"expects one of {listed}, got {got}{did_you_mean(got.strip(chr(39)), options)}"
    if sort in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        bound = context.get("ge", context.get("gt", context.get("le", context.get("lt"))))
        words = {
            "greater_than_equal": "at least",
            "greater_than": "more than",
            "less_than_equal": "at most",
            "less_than": "less than",
        }[sort]
        return f"must be {words} {bound:g}, got {got}"
    if sort == "finite_number":
        return f"expects a finite number, got {got}"
    if sort == "string_pattern_mismatch":
        return "is not a name: use letters, digits and _ . + -, starting with a letter or digit"
    if sort in ("string_too_long", "too_long"):
        return f"is too long: at most {context['max_length']}"
    if sort in ("too_short", "string_too_short"):
        least = context["min_length"]
        return f"needs at least {'one entry' if least == 1 else f'{least} entries'}"
    expected = _CLASSES.get(context.get("class_name", "")) or _EXPECTED.get(sort.partition("_")[0])
    if expected:
        quoted = "; put it in quotes" if expected == "text" and isinstance(finding["input"], int | float) else ""
        return f"expects {expected}, got {got}{quoted}"
    return f"cannot be {got}"


def bare(annotation: Any) -> list[Any]:
    """An annotation without Annotated, and the members of a union."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in bare(member)]
    return [annotation]


def _inner(annotation: Any, step: Step) -> Any:
    """The annotation one step further in, or None."""
    for option in bare(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            if step in option.model_fields:
                return option.model_fields[str(step)].annotation
            if option.model_config.get("extra") == "allow":
                hint = typing.get_type_hints(option, include_extras=True).get("__pydantic_extra__")
                return typing.get_args(hint)[1] if hint else None
        elif typing.get_origin(option) is dict:
            return typing.get_args(option)[1]
        elif typing.get_origin(option) in (tuple, list):
            return typing.get_args(option)[0]
    return None


def annotation_at(annotation: Any, steps: Sequence[Step]) -> Any:
    """The annotation of the field at `steps`, or None where there is none."""
    for step in steps:
        if annotation is None:
            return None
        annotation = _inner(annotation, step)
    return annotation


def fields(annotation: Any, steps: Sequence[Step]) -> list[str]:
    """The fields that the map at `steps` may have."""
    found = annotation_at(annotation, steps)
    return [
        name
        for option in bare(found)
        if isinstance(option, type) and issubclass(option, BaseModel)
        for name in option.model_fields
    ]


def is_model(annotation: Any) -> bool:
    """Whether a field is itself a map of fields."""
    return any(isinstance(option, type) and issubclass(option, BaseModel) for option in bare(annotation))


def is_whole(annotation: Any) -> bool:
    """Whether a field takes whole numbers, and no others."""
    kinds = bare(annotation)
    return int in kinds and float not in kinds


def fields_of_literal(annotation: Any, steps: Sequence[Step]) -> list[Any]:
    """The values that the Literal at `steps` allows."""
    found = annotation_at(annotation, steps)
    return [
        value
        for option in bare(found)
        if typing.get_origin(option) is typing.Literal
        for value in typing.get_args(option)
    ]

"""Dotted paths and values laid over a cell of a suite: what a tuning trial tries, and what a tuned winner fixes.

A path is a knob (`temperature`), a wrapped method's knob (`over.temperature`), a field of the recipe
(`recipe.optimizer.lr`), or the student's `student.model` and `student.options.<name>`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdbench.errors import UserError, did_you_mean
from kdbench.method import Method, chain, knobs
from kdbench.suite.fields import Model, Recipe, RecipeOverride, patched
from kdbench.suite.knobs import method_model

OVER = re.compile(r"(over\.)*")  # of a path: which link of the chain has the knob


def with_knobs(method: Method, overrides: Mapping[str, Any]) -> Method:
    """The method with the knobs that `overrides` names; other kinds of path are left to the functions below.

    Raises:
        UserError: the method has no such knob, or does not accept the value.
    """
    links = dict(chain(method))
    given: dict[str, dict[str, Any]] = {prefix: {} for prefix in links}
    for path, value in overrides.items():
        if path.partition(".")[0] in ("recipe", "student"):
            continue
        prefix = OVER.match(path).group()  # type: ignore[union-attr]
        if prefix not in links:
            raise UserError(f"{path}: {type(list(links.values())[-1]).__name__} wraps no method")
        name = path.removeprefix(prefix)
        if name not in knobs(links[prefix]):
            listed = did_you_mean(name, knobs(links[prefix]))
            raise UserError(f"{path}: {type(links[prefix]).__name__} has no such knob{listed}")
        given[prefix][name] = tuple(value) if isinstance(value, list) else value
    changed: dict[str, Any] = {}  # from the inside out
    for prefix, link in reversed(links.items()):
        changed = given[prefix] | changed
        if changed:
            changed = {"over": _replaced(link, changed)}
    return changed.get("over", method)


def _replaced(method: Method, changed: dict[str, Any]) -> Method:
    try:
        method_model(type(method)).model_validate({name: v for name, v in changed.items() if name != "over"})
        return dataclasses.replace(method, **changed)  # type: ignore[type-var]
    except ValidationError as error:
        raise UserError(f"{type(method).__name__} refuses {_said(error)}") from error
    except Exception as error:  # whatever a plug-in's __post_init__ raises is about these knobs
        raise UserError(f"{type(method).__name__} refuses these knobs: {error or type(error).__name__}") from error


def with_fields(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with the fields that the `recipe.` paths name.

    Raises:
        UserError: no such field, or values that do not go together.
    """
    nested: dict[str, Any] = {}
    for path, value in overrides.items():
        if not path.startswith("recipe."):
            continue
        *parents, last = path.split(".")[1:]
        level = nested
        for step in parents:
            level = level.setdefault(step, {})
        level[last] = value
    optimizer = nested.get("optimizer", {})
    if "options" in optimizer and optimizer.get("name", recipe.optimizer.name) == recipe.optimizer.name:
        optimizer["options"] = {**recipe.optimizer.options, **optimizer["options"]}
    try:
        return patched(recipe, RecipeOverride.model_validate(nested)) if nested else recipe
    except ValidationError as error:
        raise UserError(f"recipe: {_said(error)}") from error


def with_student(student: Model, overrides: Mapping[str, Any]) -> Model:
    """The student with the model and options that the `student.` paths name; another model starts without options."""
    name = overrides.get("student.model", student.model)
    prefix = "student.options."
    options = {path.removeprefix(prefix): value for path, value in overrides.items() if path.startswith(prefix)}
    before = student.options if name == student.model else {}
    if name == student.model and not options:
        return student
    return student.model_copy(update={"model": name, "options": {**before, **options}})


def _said(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"]).removeprefix("Value error, ")

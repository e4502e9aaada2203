"""Dotted paths and values laid over a cell of a suite: what a tuning trial tries, and what a tuned winner fixes.

A path is a knob (`temperature`), a wrapped method's knob (`over.temperature`), a field of the recipe
(`recipe.optimizer.lr`), or the student's `student.model` and `student.options.<name>`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdbench.errors import UserError, did_you_mean
from kdbench.method import Method, Wrapper, knobs
from kdbench.suite.fields import Model, Recipe, RecipeOverride, patched
from kdbench.suite.knobs import method_model


def with_knobs(method: Method, overrides: Mapping[str, Any], prefix: str = "") -> Method:
    """The method with the knobs that `overrides` names; other kinds of path are left to the functions below.

    Raises:
        UserError: the method has no such knob, or does not accept the value.
    """
    own: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for path, value in overrides.items():
        first = path.partition(".")[0]
        if first == "over":
            inner[path.removeprefix("over.")] = value
        elif prefix or first not in ("recipe", "student"):
            own[path] = value
    for path in own:
        if path not in knobs(method):
            listed = did_you_mean(path, knobs(method))
            raise UserError(f"{prefix}{path}: {type(method).__name__} has no such knob{listed}")
    if inner and not isinstance(method, Wrapper):
        raise UserError(f"{prefix}over.{next(iter(inner))}: {type(method).__name__} wraps no method")
    changed: dict[str, Any] = {path: tuple(v) if isinstance(v, list) else v for path, v in own.items()}
    try:
        method_model(type(method)).model_validate(changed)
        if inner and isinstance(method, Wrapper):
            changed["over"] = with_knobs(method.over, inner, f"{prefix}over.")
        return dataclasses.replace(method, **changed) if changed else method  # type: ignore[type-var]
    except ValidationError as error:
        raise UserError(f"{type(method).__name__} refuses {_said(error)}") from error
    except UserError:
        raise
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

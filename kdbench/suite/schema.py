"""A method's knobs as a pydantic model, and the JSON Schema of suite files for editors.

Regenerate the published schema with `kdbench schema > docs/suite.schema.json`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from kdbench import plugins
from kdbench.errors import did_you_mean
from kdbench.method import Method, knobs
from kdbench.suite.fields import SuiteFile

RESERVED = ("method", "over")  # what a method's map holds beside its knobs


@cache
def method_model(cls: type[Method]) -> type[BaseModel]:
    """The knobs of a method: types from its annotations, ranges and choices from `knob()`; strict and closed.

    Raises:
        LookupError: with a sentence, where the class cannot be read (it is not a dataclass, a type is unknown).
    """
    if not dataclasses.is_dataclass(cls):
        raise LookupError(f"{cls.__name__} is not a dataclass: write @dataclass(frozen=True) above it")
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError) as error:
        raise LookupError(f"{cls.__name__}: the type of a knob cannot be read: {error}") from error
    fields: dict[str, Any] = {}
    for name, field in knobs(cls).items():
        if name in RESERVED:
            raise LookupError(f"{cls.__name__}: a knob cannot be called `{name}`")
        meta = field.metadata["knob"]
        kind = _strict(hints[name], meta["low"], meta["high"])
        extra = None
        if meta["choices"]:
            kind = Annotated[kind, AfterValidator(_among(meta["choices"]))]
            extra = {"enum": list(meta["choices"])}
        fields[name] = (kind, Field(field.default, description=meta["help"] or None, json_schema_extra=extra))
    config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)


def _strict(kind: Any, low: float | None, high: float | None) -> Any:
    """A knob's annotation with strict scalars and its range; both reach into tuples and optional values."""
    if kind in (int, float):
        return Annotated[kind, Field(strict=True, ge=low, le=high, allow_inf_nan=None if kind is int else False)]
    if kind in (bool, str):
        return Annotated[kind, Field(strict=True)]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple[tuple(item if item is ... else _strict(item, low, high) for item in inner)]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return Union[tuple(_strict(item, low, high) for item in inner)]  # noqa: UP007 (runtime value)
    return kind


def _among(choices: tuple[Any, ...]) -> Any:
    def check(value: Any) -> Any:
        if value not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"expects one of {listed}, got {value!r}{did_you_mean(value, choices)}")
        return value

    return check


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a suite file, the knobs of kdbench's own methods included.

    It does not depend on what else is installed: other methods are accepted with any knobs.
    """
    document = SuiteFile.model_json_schema()
    definitions = document["$defs"]
    builtin = plugins.builtin_methods()
    any_method: dict[str, Any] = {"$ref": "#/$defs/method"}
    for name in builtin:
        definitions[f"method.{name}"] = _method_schema(name)
    explicit = [{"$ref": f"#/$defs/method.{name}", "required": ["method"]} for name in builtin]
    other = {
        "description": "A method of an installed package, or of a Python file (`./mine.py`).",
        "type": "object",
        "properties": {"method": {"type": "string", "not": {"enum": list(builtin)}}, "over": any_method},
        "required": ["method"],
    }
    definitions["method"] = {"anyOf": [{"type": "null"}, *explicit, other]}
    methods = document["properties"]["methods"]
    (pattern,) = methods["patternProperties"]
    for part in (document, definitions["Pair"]):  # pydantic leaves other names open
        for rule in part["properties"].values():
            if "patternProperties" in rule:
                rule["additionalProperties"] = False
    document["properties"]["methods"] = {
        "description": methods["description"],
        "type": "object",
        "minProperties": 1,
        "propertyNames": {**methods["propertyNames"], "pattern": pattern},
        "properties": {name: {"anyOf": [any_method, {"$ref": f"#/$defs/method.{name}"}]} for name in builtin},
        # A label may be the name of an installed method: then it needs no `method`.
        "additionalProperties": {"anyOf": [any_method, {"type": "object", "not": {"required": ["method"]}}]},
    }
    required = document.pop("required")
    document["anyOf"] = [{"required": required}, {"required": ["extends"]}]  # the rest may come from the other file
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def _method_schema(name: str) -> dict[str, Any]:
    cls = plugins.method_class(name, Path())
    document = method_model(cls).model_json_schema()
    properties: dict[str, Any] = {"method": {"const": name}, **document.get("properties", {})}
    if plugins.is_wrapper(cls):
        properties["over"] = {"$ref": "#/$defs/method", "description": "The method that this one wraps."}
    heading = (cls.__doc__ or "").strip().partition("\n")[0]
    return {
        "type": "object",
        "description": heading,
        "properties": properties,
        "additionalProperties": False,
    }


def schema_text() -> str:
    """What `kdbench schema` prints and `docs/suite.schema.json` holds."""
    return json.dumps(schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

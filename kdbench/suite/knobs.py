"""The knobs of a method as fields of a pydantic model."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Annotated, Any, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from kdbench.errors import did_you_mean
from kdbench.method import Method, knobs

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

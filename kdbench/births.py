"""What of a declaration is part of a job's identity: everything but what is younger than its format and neutral.

Every field and knob has a birth. Those that were there when the format was fixed are part of the content with whatever
value they have; a younger one only where it differs from its default. So a new field or knob whose default changes
nothing leaves every key as it was, and every record current. See docs/adr/0012-identity-that-grows.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

FORMAT = 1  # of a job's content; raise it together with `job.PROTOCOL` only, when every result counts as stale anyway


@dataclass(frozen=True)
class Since:
    """Birth of a field, the format that it is first part of: `field: Annotated[Int, Since(2)] = 0`."""

    format: int


@dataclass(frozen=True)
class Outside:
    """Marks a field that is not part of the content, and says why: `field: Annotated[Bool, Outside("...")] = False`."""

    why: str


def born(since: int, value: Any, default: Any) -> bool:
    """Whether a field or knob is part of the content: it is as old as the format, or not at its default."""
    return since <= FORMAT or value != default


def content(declared: BaseModel) -> dict[str, Any]:
    """A declaration as plain JSON values, without what is outside of identity or unborn, at every depth.

    Maps (`options`) are the user's own words and count as they are.
    """
    return _pruned(declared, declared.model_dump(mode="json"))


def outside(declared: type[BaseModel]) -> set[str]:
    """Names of the fields that are not part of the content."""
    return {name for name, info in declared.model_fields.items() if _is_outside(info)}


def _pruned(value: Any, plain: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_pruned(item, part) for item, part in zip(value, plain, strict=True)]
    fields: dict[str, FieldInfo] | None = getattr(type(value), "model_fields", None)
    if fields is None:
        return plain
    return {
        name: _pruned(getattr(value, name), plain[name]) for name, info in fields.items() if _counts(info, value, name)
    }


def _counts(info: FieldInfo, value: Any, name: str) -> bool:
    since = next((mark.format for mark in info.metadata if isinstance(mark, Since)), 1)
    return not _is_outside(info) and born(since, getattr(value, name), info.get_default(call_default_factory=True))


def _is_outside(info: FieldInfo) -> bool:
    return any(isinstance(mark, Outside) for mark in info.metadata)

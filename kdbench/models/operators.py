"""Custom operators taken apart into torch's own, so that an exported graph loads where kdbench is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_PLAIN: dict[Any, Callable[..., Any]] = {}


def register(operator: Any, plain: Callable[..., Any]) -> None:
    """State what an overload (`torch.ops.my_library.selective_scan.default`) computes, in traceable torch operations.

    `plain` takes the operator's arguments and answers what it answers. It may be slower, but must not write in place.
    """
    _PLAIN[operator] = plain


def table() -> dict[Any, Callable[..., Any]]:
    """Overload -> function, as `torch.export.ExportedProgram.run_decompositions` takes it."""
    return dict(_PLAIN)

"""Whether code waits for the device: on the CPU nobody notices, on a GPU every such wait stops the queue."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Attributes, read off the source.
FORBIDDEN = frozenset({"item", "tolist", "numpy", "cpu", "nonzero", "unique", "one_hot", "masked_select"})
_METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_dim", "unique_consecutive")
# Members that are not called in a step.
COLD = frozenset({"needs", "plan", "prepare", "deploy", "sample", "heads", "review", "__post_init__"})


class _Operations(TorchDispatchMode):
    """Refuses operations whose result's shape or value the host must know."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would load its compiler, for seconds, to keep it away from what nobody compiles here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masks or name.startswith(_OPERATIONS):
            said = "indexing by a boolean mask" if masks else name
            raise AssertionError(f"{said} waits for the device: use torch.where, or sums weighted by the mask")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_is_read() -> Iterator[None]:
    """Within, whatever would wait for the device raises AssertionError with a sentence."""

    def refusing(member: str) -> Any:
        def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"Tensor.{member} waits for the device: keep the value in a tensor")

        return refuse

    with contextlib.ExitStack() as stack:
        for member in _METHODS:
            stack.enter_context(mock.patch.object(torch.Tensor, member, refusing(member)))
        stack.enter_context(_Operations())
        yield


def read_in_class(text: str, name: str) -> set[str]:
    """Attributes of `FORBIDDEN` in the members of a class that are called in a step, also on branches no test enters.

    What these call of the same file counts too; `heads`, `deploy` and the like may read what they like.
    """
    top = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found: set[str] = set()
    waiting, seen = [name], set()
    while waiting:
        node = top.get(current := waiting.pop())
        if node is None or current in seen:
            continue
        seen.add(current)
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(node, ast.ClassDef) and isinstance(member, ast.FunctionDef) and member.name in COLD:
                continue
            for part in ast.walk(member):
                if isinstance(part, ast.Attribute) and part.attr in FORBIDDEN:
                    found.add(part.attr)
                if isinstance(part, ast.Name):
                    waiting.append(part.id)
    return found

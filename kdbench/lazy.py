"""PyTorch, imported at first use.

`kdbench --help` and `kdbench check` must answer at once, and methods are real Python objects whose knobs and plans
they read. So a module that only *mentions* torch at import time writes `from kdbench.lazy import F, nn, torch`; the
import happens when a function first touches an attribute. A plain `import torch` works as well, it is only slower.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
    from torch import nn as nn
else:

    class _Lazy:
        def __init__(self, name: str) -> None:
            self.__dict__["_name"] = name

        def __getattr__(self, attribute: str) -> Any:
            value = getattr(importlib.import_module(self._name), attribute)
            self.__dict__[attribute] = value
            return value

    torch, nn, F = _Lazy("torch"), _Lazy("torch.nn"), _Lazy("torch.nn.functional")

__all__ = ["F", "nn", "torch"]

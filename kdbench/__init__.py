"""kdbench: a declarative, fair benchmark suite for knowledge distillation in PyTorch.

The names below are the public ones: a method, model, task or data set of one's own needs no other, and they stay where
they are. Each is imported when it is first used, so that `import kdbench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {  # public name -> module below kdbench that defines it
    "Batch": "batch",
    "DataSet": "data",
    "F": "lazy",
    "Method": "method",
    "Metric": "tasks",
    "Needs": "method",
    "Out": "batch",
    "Paper": "method",
    "Plan": "method",
    "Probe": "batch",
    "Profile": "batch",
    "Raw": "data.raw",
    "Refusal": "method",
    "Review": "batch",
    "Scorer": "tasks",
    "Source": "data.batches",
    "Stage": "method",
    "Tap": "models.taps",
    "Targets": "targets",
    "Task": "tasks",
    "UserError": "errors",
    "Wrapper": "method",
    "architecture": "export.deployed",
    "build": "models",
    "knob": "method",
    "load": "suite.load",
    "nn": "lazy",
    "refusing_files": "userfiles",
    "torch": "lazy",
}
_MODULES = ("losses", "testing")  # public as they are: `kdbench.losses.soft_kl`, `kdbench.testing.MethodContract`

__all__ = [
    "Batch", "DataSet", "F", "Method", "Metric", "Needs", "Out", "Paper", "Plan", "Probe", "Profile", "Raw", "Refusal",
    "Review", "Scorer", "Source", "Stage", "Tap", "Targets", "Task", "UserError", "Wrapper", "architecture", "build",
    "knob", "load", "losses", "nn", "refusing_files", "testing", "torch",
]  # fmt: skip

if TYPE_CHECKING:
    from kdbench import losses, testing
    from kdbench.batch import Batch, Out, Probe, Profile, Review
    from kdbench.data import DataSet
    from kdbench.data.batches import Source
    from kdbench.data.raw import Raw
    from kdbench.errors import UserError
    from kdbench.export.deployed import architecture
    from kdbench.lazy import F, nn, torch
    from kdbench.method import Method, Needs, Paper, Plan, Refusal, Stage, Wrapper, knob
    from kdbench.models import build
    from kdbench.models.taps import Tap
    from kdbench.suite.load import load
    from kdbench.targets import Targets
    from kdbench.tasks import Metric, Scorer, Task
    from kdbench.userfiles import refusing_files


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kdbench.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'kdbench' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"kdbench.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

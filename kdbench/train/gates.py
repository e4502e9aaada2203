"""Gates of frozen roles: what a teacher must reach on validation before it may teach."""

from __future__ import annotations

from collections.abc import Mapping

from kdbench.suite.fields import Model
from kdbench.tasks import Metric, Task


def missed(model: Model, task: Task, scores: Mapping[str, float], role: str) -> str:
    """Which gate a frozen model misses, as a sentence; "" where it passes all. `scores` are named `val/<metric>`."""
    for name, bound in model.gates(task.headline.name).items():
        metric, value = task.metric(name), scores.get(f"val/{name}")
        if metric is None or value is None:
            return f"{role} {model.model} has no {name} on validation, which its gate asks for"
        if not metric.sign * (value - bound) >= 0:
            side = "below" if metric.better == "up" else "above"
            return (
                f"{role} {model.model} reaches {metric.shown(value)} on validation, "
                f"{side} its gate of {_plain(metric, bound)}"
            )
    return ""


def _plain(metric: Metric, bound: float) -> str:
    return f"{bound:g}{metric.unit if metric.unit == '%' else ''}"

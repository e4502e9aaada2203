"""Axes of a headline: its words, its steps, and its numbers where it is drawn with its sign changed."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter

from kdbench.tasks import Metric

if TYPE_CHECKING:
    from matplotlib.axis import Axis


def axis(metric: Metric) -> str:
    """ "test top-1 (%)", "test RMSE, less is better"."""
    return f"test {metric.heading}" + ("" if metric.better == "up" else f", {metric.direction}")


def point(metric: Metric, values: Sequence[float]) -> float:
    """What a percentage point is to an accuracy: a hundredth of the range, else of the middle of these values."""
    low, high = metric.bounds
    size = high - low if isfinite(high - low) else abs(median(values)) if values else 0.0
    return size / 100 or 1.0


def tell(axis: Axis, sign: int) -> None:
    """Numbers along an axis of values with that sign as they are without it."""
    if sign < 0:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{-value or 0.0:g}"))

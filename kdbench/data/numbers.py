"""Sets of numbers: rows of a table, or maps; what their readers return, and how it becomes three splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.raw import Array
from kdbench.errors import UserError
from kdbench.tasks import Task

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RawNumbers:
    """A data set of numbers as stored, before anything is cut from it or standardised.

    Inputs are real numbers, (N, F) or (N, channels, H, W); numpy arrays or CPU tensors. Labels are classes (N,) in
    [0, outputs), or numbers (N, outputs) or (N, outputs, H, W), as the task wants them; NaN where one is not known.
    `val` is how many training examples are cut for validation where the suite does not say. `task` is a task or its
    name; None is whatever the suite or the file's `TASK` says.
    """

    train: Array
    train_labels: Array
    test: Array
    test_labels: Array
    outputs: int
    val: int
    task: Task | str | None = None
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()


def checked(name: str, raw: RawNumbers, kind: str) -> RawNumbers:
    """With arrays of the right types: float32 inputs, and int64 or float32 labels.

    Args:
        kind: the task's, "categorical" or "real".

    Raises:
        UserError: the arrays are not what `RawNumbers` promises.
    """
    made: dict[str, Any] = {}
    for part in ("train", "test"):
        said = f"data set '{name}': {part}"
        values, labels = (np.asarray(getattr(raw, f"{part}{which}")) for which in ("", "_labels"))
        if values.dtype.kind not in "fiu" or values.ndim not in (2, 4) or not len(values):
            raise UserError(f"{said} must be numbers (N, F) or (N, channels, H, W), not {values.dtype} {values.shape}")
        if values.shape[1:] != np.shape(raw.train)[1:]:
            raise UserError(f"{said} has examples {values.shape[1:]}, train {np.shape(raw.train)[1:]}")
        if not np.isfinite(values).all():
            raise UserError(f"{said} holds numbers that are not finite; fill them in, or leave their rows out")
        made[part], made[f"{part}_labels"] = values.astype("<f4"), _labels(said, labels, len(values), raw.outputs, kind)
    return RawNumbers(**{**vars(raw), **made})


def _labels(said: str, labels: Array, examples: int, outputs: int, kind: str) -> Any:
    if kind == "categorical":
        if labels.dtype.kind not in "iu" or labels.shape != (examples,):
            raise UserError(f"{said}_labels must be integers ({examples},), not {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= outputs:
            raise UserError(f"{said}_labels go from {labels.min()} to {labels.max()}; there are {outputs} classes")
        return labels.astype("<i8")
    if labels.dtype.kind not in "fiu" or labels.shape[:2] != (examples, outputs):
        raise UserError(
            f"{said}_labels must be numbers ({examples}, {outputs}, ...), one row for each example, "
            f"not {labels.dtype} {labels.shape}"
        )
    labels = labels.astype("<f4")
    if np.isinf(labels).any() or np.isnan(labels).all():
        raise UserError(f"{said}_labels must be finite, or NaN where one is not known, and some must be known")
    return labels


def statistics(values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column (1, F), or of each channel (1, channels, 1, 1); 0 becomes 1."""
    axes = (0,) if values.ndim == 2 else (0, 2, 3)
    wide = values.astype(np.float64)
    std = wide.std(axes, keepdims=True)
    return wide.mean(axes, keepdims=True).astype("<f4"), np.where(std > 0, std, 1).astype("<f4")

"""Stratified cuts: a function of (labels, sizes, seed) alone, whatever the versions of numpy, torch or scikit-learn."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import UserError
from kdbench.lazy import torch
from kdbench.streams import counter_bits, derive

Ints = NDArray[np.int64]


def ranks(labels_N: Ints, key: int) -> Ints:
    """Each example's place (0, 1, ...) in the random order, under the stream `key`, of its own class: (N,)."""
    bits = counter_bits(key, torch.arange(len(labels_N))).numpy()
    order = np.lexsort((bits, labels_N))  # by class, then by random bits; ties by position
    counts = np.bincount(labels_N)
    starts = np.cumsum(counts) - counts
    ranks_N = np.empty(len(labels_N), dtype=np.int64)
    ranks_N[order] = np.arange(len(labels_N)) - starts[labels_N[order]]
    return ranks_N


def quotas(counts_C: Ints, total: int) -> Ints:
    """`total` shared out in proportion to `counts_C` by largest remainders, leaving at least one of each class.

    Needs 0 <= total <= sum(counts_C) - (number of non-empty classes). Exact: integers only.
    """
    quota = total * counts_C // counts_C.sum()
    remainder = total * counts_C % counts_C.sum()
    left = total - int(quota.sum())
    while left > 0:
        for c in np.argsort(-remainder, kind="stable"):
            if left > 0 and quota[c] < counts_C[c] - 1:
                quota[c] += 1
                left -= 1
    return quota


def cut(labels_N: Ints, val: int, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Positions (ascending) of the training and the validation examples.

    Validation is chosen first, so it does not depend on `fraction`; of what remains of a class, `fraction` keeps the
    nearest number of examples, at least one. A smaller fraction keeps a subset of what a larger one keeps.

    Raises UserError when `val` leaves some class without a training example.
    """
    counts_C = np.bincount(labels_N).astype(np.int64)
    most = len(labels_N) - int((counts_C > 0).sum())
    if val > most:
        raise UserError(
            f"data.val: {val} examples for validation leave too few of {len(labels_N)} for training: "
            f"choose at most {most}, so that every class keeps one"
        )
    ranks_N = ranks(labels_N, derive(seed, "split"))
    val_C = quotas(counts_C, val)
    rest_C = counts_C - val_C
    # Round half up, class by class: the count of each class then grows with `fraction`, which nests the subsets.
    keep_C = np.array([min(n, max(1, math.floor(fraction * n + 0.5))) for n in rest_C.tolist()], dtype=np.int64)
    is_val_N = ranks_N < val_C[labels_N]
    is_train_N = ~is_val_N & (ranks_N < (val_C + keep_C)[labels_N])
    return np.flatnonzero(is_train_N).astype(np.int64), np.flatnonzero(is_val_N).astype(np.int64)

"""What may be concluded from a few seeds and a few settings.

Accuracies here are percent and gains percentage points, but nothing depends on the unit. Seeds are paired: the same
seed is the same student, order and augmentation for every method, so a gain is one difference for each seed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
ALPHA = 0.05
FEWEST_SETTINGS = 6  # below this, even six wins out of six could not reach a two-sided p of 0.05
RESAMPLES = 10_000
_SPREAD = 1e-9  # below this, a spread is only the rounding of floats


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its t interval, and the two-sided p-value of the mean being zero.

    `half` is None where there is no interval: fewer than two values, or values without any spread (a t interval of
    width zero would claim certainty that so few seeds cannot give). `p` is then 1.
    """

    mean: float
    half: float | None
    n: int
    p: float = 1.0


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95% Student t interval: mean +- t(0.975, n-1) s / sqrt(n), with s from n-1.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    x_n = np.asarray(values, dtype=float)
    n, mean = len(x_n), float(x_n.mean())
    spread = float(x_n.std(ddof=1)) if n > 1 else 0.0
    if spread <= _SPREAD:
        return Interval(mean, None, n)
    error = spread / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * error
    return Interval(mean, half, n, float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Interval | None:
    """The interval of a - b over the seeds that both have; None where they share none."""
    common = sorted(set(a) & set(b))
    return interval([a[seed] - b[seed] for seed in common]) if common else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: reject where the adjusted value is below alpha.

    The i-th smallest of m is multiplied by m - i + 1, then made monotone and capped at 1 (Holm, "A simple
    sequentially rejective multiple test procedure", 1979).
    """
    adjusted, largest, m = [1.0] * len(p_values), 0.0, len(p_values)
    for step, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, (m - step) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def iqm(values: Sequence[float]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter (each rounded down)."""
    return float(_iqm(np.asarray(values, dtype=float)))


def _iqm(values_xN: np.ndarray) -> np.ndarray:
    n = values_xN.shape[-1]
    cut = n // 4
    return np.sort(values_xN, axis=-1)[..., cut : n - cut].mean(axis=-1)


def iqm_interval(strata: Sequence[Sequence[float]], resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """IQM over all values and its 95% percentile interval, resampling seeds within each stratum (a setting).

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021,
    section 4. The generator's seed is fixed: the same values give the same interval.
    """
    rng = np.random.default_rng(0)
    parts = []
    for stratum in strata:
        x_n = np.asarray(stratum, dtype=float)
        parts.append(x_n[rng.integers(0, len(x_n), size=(resamples, len(x_n)))])
    low, high = np.percentile(_iqm(np.concatenate(parts, axis=1)), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return iqm([value for stratum in strata for value in stratum]), float(low), float(high)


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the signed-rank test, one difference a setting; None below six settings."""
    if len(differences) < FEWEST_SETTINGS:
        return None
    rounded = np.round(np.asarray(differences, dtype=float), 9)  # so that equal differences tie
    if not rounded.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zeros among the differences
        return float(stats.wilcoxon(rounded).pvalue)


def mean_ranks(scores_SM: Sequence[Sequence[float]]) -> list[float]:
    """Mean over settings of each method's rank, 1 the best, ties sharing the mean of their places."""
    ranks_SM = [stats.rankdata(-np.round(np.asarray(row, dtype=float), 9)) for row in scores_SM]
    return [float(rank) for rank in np.mean(ranks_SM, axis=0)]

"""What may be concluded from a few seeds and a few settings.

Nothing depends on the unit of a score; where less is better, differences change their sign, so that + is a gain. Seeds
are paired: the same seed is the same student, order and augmentation for every method, so a gain is one difference for
each seed.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t, as in scipy.stats, which takes a second to import

LEVEL = 0.95
ALPHA = 0.05
FEWEST_SETTINGS = 6  # below this, even six wins out of six could not reach a two-sided p of 0.05
RESAMPLES = 1_000_000  # of a bootstrap that is too large to enumerate, of up to FEW values
FEW = 20
FEWER = 30_000  # of more values: an end of the interval is then within 1% of its half-width, whatever the sample
ENUMERATED = 100_000  # different resamples, up to which all are looked at
PORTION = 250_000  # values of resamples at a time
_COUNT = np.uint16  # of seeds that were drawn
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
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    return Interval(mean, half, n, float(2 * stdtr(n - 1, -abs(mean) / error)))


def paired(a: Mapping[int, float], b: Mapping[int, float], sign: int = 1) -> Interval | None:
    """The interval of sign * (a - b) over the seeds that both have; None where they share none."""
    common = sorted(set(a) & set(b))
    return interval([sign * (a[seed] - b[seed]) for seed in common]) if common else None


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


def smallest_claim(n: int, comparisons: int) -> float:
    """How many standard deviations of the paired differences the mean must be from zero for Holm's first rejection.

    t(1 - alpha / 2m, n - 1) / sqrt(n) of m comparisons over n seeds.
    """
    return -float(stdtrit(n - 1, ALPHA / (2 * comparisons))) / math.sqrt(n)


def iqm(values: Sequence[float]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter (each rounded down)."""
    x_n = np.sort(np.asarray(values, dtype=float))
    return float(_trimmed(np.ones((len(x_n), 1), dtype=np.uint8), x_n)[0])


def _trimmed(counts_NR: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Interquartile means (R,) of samples that hold the i-th of the sorted values `counts_NR[i]` times.

    Summed by parts, over the gaps between neighbours: the largest value, less each gap times the share of what is
    kept that lies below it.
    """
    size = int(counts_NR[:, 0].sum())
    cut = size // 4
    below_NR = counts_NR[:-1].astype(_COUNT)
    for row_R, next_R in pairwise(below_NR):  # `cumsum` along the first axis takes ten times as long
        next_R += row_R
    kept_NR = np.clip(below_NR, cut, size - cut) - _COUNT(cut)
    return values_N[-1] - np.diff(values_N) @ kept_NR.astype(float) / (size - 2 * cut)


def draws(values: int) -> int:
    """How many resamples are drawn of so many values, where there are too many to look at all."""
    return RESAMPLES if values <= FEW else FEWER


def iqm_interval(
    strata: Sequence[Sequence[float]], resamples: int | None = None, enumerated: int = ENUMERATED
) -> tuple[float, float, float]:
    """IQM over all values and its 95% percentile interval, resampling seeds within each stratum (a setting).

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021,
    section 4. Exact where there are at most `enumerated` different resamples: each is weighed by its probability.
    Otherwise `resamples` are drawn, by default as many as `draws` says, and the same ones for all strata of
    these sizes. The order of strata, and of values within one, changes nothing.
    """
    parts = sorted((tuple(sorted(map(float, stratum))) for stratum in strata), key=lambda part: (len(part), part))
    values = np.asarray([value for part in parts for value in part])
    order = np.argsort(values, kind="stable")
    sizes = tuple(len(part) for part in parts)
    if math.prod(math.comb(2 * n - 1, n) for n in sizes) <= enumerated:
        counts_NR, weights_R = _every_resample(sizes)
    else:
        counts_NR, weights_R = _drawn(sizes, resamples or draws(len(values))), None
    ordered = values[order]
    portions = _columns(len(values), counts_NR.shape[1])
    low, high = _ends(np.concatenate([_trimmed(counts_NR[:, part][order], ordered) for part in portions]), weights_R)
    return iqm(list(values)), low, high


@functools.lru_cache(maxsize=4)
def _every_resample(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """How often each value is in each of the different resamples (N, R), and their probabilities (R,)."""
    counts_NR, weights_R = np.zeros((0, 1), dtype=_COUNT), np.ones(1)
    for n in sizes:
        bags = [np.bincount(bag, minlength=n) for bag in combinations_with_replacement(range(n), n)]
        shares = [math.factorial(n) / math.prod(map(math.factorial, bag.tolist())) / n**n for bag in bags]
        own = np.asarray(bags, dtype=_COUNT).T
        counts_NR = np.concatenate([counts_NR.repeat(len(bags), axis=1), np.tile(own, (1, counts_NR.shape[1]))])
        weights_R = np.outer(weights_R, shares).ravel()
    return counts_NR, weights_R


@functools.lru_cache(maxsize=2)
def _drawn(sizes: tuple[int, ...], how_many: int) -> np.ndarray:
    """Counts (N, R) of random resamples within each stratum, the same at every call."""
    rng = np.random.default_rng([*sizes, how_many])
    counts_NR = np.zeros((sum(sizes), how_many), dtype=_COUNT)
    first = 0
    for n in sizes:
        for columns in _columns(n, how_many):
            counts_nR = counts_NR[first : first + n, columns]
            every_R = np.arange(counts_nR.shape[1])
            for _ in range(n):
                counts_nR[rng.integers(0, n, size=len(every_R)), every_R] += 1
        first += n
    return counts_NR


def _columns(values: int, how_many: int) -> Iterator[slice]:
    """Resamples in portions that stay in the processor's cache."""
    step = max(1, PORTION // values)
    return (slice(start, start + step) for start in range(0, how_many, step))


def _ends(values_R: np.ndarray, weights_R: np.ndarray | None) -> tuple[float, float]:
    """The smallest value that has at least 2.5% of the weight at or below it, and the largest at or above it.

    Without weights all count the same.
    """
    tail = (1 - LEVEL) / 2
    if weights_R is None:
        last = math.ceil(tail * len(values_R) - 1e-9) - 1
        ordered_R = np.partition(values_R, [last, len(values_R) - 1 - last])
        return float(ordered_R[last]), float(ordered_R[-1 - last])
    order_R = np.argsort(values_R, kind="stable")
    ends = [
        values_R[way_R][np.searchsorted(weights_R[way_R].cumsum(), tail - 1e-12)] for way_R in (order_R, order_R[::-1])
    ]
    return float(ends[0]), float(ends[1])


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the signed-rank test, one difference a setting; None below six settings."""
    if len(differences) < FEWEST_SETTINGS:
        return None
    rounded = np.round(np.asarray(differences, dtype=float), 9)  # so that equal differences tie
    if not rounded.any():
        return 1.0
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zeros among the differences
        return float(stats.wilcoxon(rounded).pvalue)


def mean_ranks(scores_SM: Sequence[Sequence[float]]) -> list[float]:
    """Mean over settings of each method's rank, 1 the highest, ties sharing the mean of their places."""
    ranks_SM = [_ranks(-np.round(np.asarray(row, dtype=float), 9)) for row in scores_SM]
    return [float(rank) for rank in np.mean(ranks_SM, axis=0)]


def _ranks(values_M: np.ndarray) -> np.ndarray:
    """The place of each value (M,) among all, the smallest 1; equal values share the mean of their places."""
    ordered_M = np.sort(values_M)
    below_M, up_to_M = (ordered_M.searchsorted(values_M, side) for side in ("left", "right"))
    return (below_M + 1 + up_to_M) / 2

"""Intervals, corrections and aggregates against hand-worked cases and independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kdbench.board.statistics import (
    draws,
    holm,
    interval,
    iqm,
    iqm_interval,
    mean_ranks,
    paired,
    smallest_claim,
    wilcoxon,
)

FIVE = [70.1, 70.9, 69.8, 71.2, 70.4]


def test_the_interval_is_the_t_table_s() -> None:
    found = interval([1.0, 2.0, 3.0])  # s = 1, t(0.975, 2) = 4.302653
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert found.n == 3


def test_interval_and_p_value_agree_with_scipy_s_own_test() -> None:
    test = stats.ttest_1samp(FIVE, 70.0)
    found = interval([x - 70.0 for x in FIVE])
    low, high = test.confidence_interval(0.95)
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low - 70.0, high - 70.0))
    assert found.p == pytest.approx(test.pvalue)


def test_the_p_value_and_the_interval_say_the_same() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        found = interval(list(rng.normal(0.8, 1.0, 5)))
        assert found.half is not None
        assert (found.p < 0.05) == (abs(found.mean) > found.half)


@pytest.mark.parametrize("values", [[3.0], [0.1 + 0.2, 0.3, 0.3]])
def test_without_spread_there_is_no_interval_and_nothing_to_claim(values: list[float]) -> None:
    found = interval(values)
    assert (found.half, found.p) == (None, 1.0)
    assert found.mean == pytest.approx(values[0])


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_a_paired_gain_is_the_mean_of_the_differences_of_common_seeds() -> None:
    a, b = {0: 71.0, 1: 72.5, 2: 70.0, 7: 99.0}, {2: 69.0, 1: 70.5, 0: 71.5, 3: 1.0}
    found = paired(a, b)
    assert found is not None
    assert (found.mean, found.n) == ((-0.5 + 2.0 + 1.0) / 3, 3)
    assert found.p == pytest.approx(stats.ttest_rel([71.0, 72.5, 70.0], [71.5, 70.5, 69.0]).pvalue)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_holm_by_hand() -> None:
    # sorted: 0.005 x 4 = 0.02, 0.01 x 3 = 0.03, 0.03 x 2 = 0.06, 0.04 x 1 = 0.04 -> raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        p = rng.uniform(0, 0.1, 6)
        rejected = set()
        for step, i in enumerate(np.argsort(p)):
            if p[i] >= 0.05 / (6 - step):
                break
            rejected.add(int(i))
        assert {i for i, value in enumerate(holm(list(p))) if value < 0.05} == rejected


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 10, 13])
def test_iqm_is_the_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    assert iqm(list(values)) == pytest.approx(stats.trim_mean(values, 0.25))


def test_iqm_by_hand() -> None:
    assert iqm([100.0, 1.0, 2.0, -50.0, 3.0, 4.0, 5.0, 6.0]) == (2 + 3 + 4 + 5) / 4  # two off each end


def test_the_bootstrap_resamples_within_each_stratum() -> None:
    # Each stratum is constant: resampling inside it changes nothing, resampling across strata would.
    assert iqm_interval([[1.0, 1.0], [5.0, 5.0]], resamples=200) == (3.0, 3.0, 3.0)


def test_the_bootstrap_interval_is_the_exact_one_of_two_seeds() -> None:
    # One stratum of two seeds: all means over the four equally likely resamples are 0, 1/2, 1/2, 1.
    values = sorted(np.mean(pick) for pick in itertools.product([0.0, 1.0], repeat=2))
    assert iqm_interval([[0.0, 1.0]]) == (0.5, values[0], values[-1])


@pytest.mark.parametrize("strata", [[[0.3, -1.0, 2.5]], [[0.3, -1.0, 2.5], [5.0, 1.0, 1.25]], [[1.0, 2.0, 4.0, 8.0]]])
def test_few_resamples_are_all_looked_at(strata: list[list[float]]) -> None:
    picks = itertools.product(*(itertools.product(stratum, repeat=len(stratum)) for stratum in strata))
    means = sorted(stats.trim_mean([x for part in pick for x in part], 0.25) for pick in picks)
    cut = math.ceil(0.025 * len(means) - 1e-9)
    middle, low, high = iqm_interval(strata)
    assert middle == pytest.approx(stats.trim_mean([x for part in strata for x in part], 0.25))
    assert (low, high) == pytest.approx((means[cut - 1], means[-cut]))


def test_many_resamples_are_near_the_exact_interval() -> None:
    strata = [[0.3, -1.0, 2.5, 0.75, 4.0], [5.0, 1.0, 1.25, -3.0, 0.5]]
    drawn = iqm_interval(strata, resamples=200_000, enumerated=0)
    assert drawn == pytest.approx(iqm_interval(strata), abs=0.03)


def test_neither_the_order_of_settings_nor_that_of_seeds_changes_the_interval() -> None:
    strata = [list(np.random.default_rng(i).normal(size=5)) for i in range(4)]
    first = iqm_interval(strata, resamples=5_000, enumerated=0)
    assert iqm_interval([stratum[::-1] for stratum in strata[::-1]], resamples=5_000, enumerated=0) == first
    other = iqm_interval([*strata[:-1], [x + 1e-6 for x in strata[-1]]], resamples=5_000, enumerated=0)
    assert other[1:] == pytest.approx(first[1:], abs=0.1)
    assert other != first


def test_the_smallest_claim_is_where_holm_first_rejects() -> None:
    needed = smallest_claim(5, 4)
    noise = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    noise /= noise.std(ddof=1)
    for factor, claimed in ((1.001, True), (0.999, False)):
        p = interval(list(noise + factor * needed)).p
        assert (holm([p, 0.9, 0.9, 0.9])[0] < 0.05) is claimed


def test_the_bootstrap_interval_is_near_the_normal_one_and_repeats() -> None:
    rng = np.random.default_rng(3)
    strata = [list(rng.normal(1.0, 1.0, 40)) for _ in range(4)]
    middle, low, high = iqm_interval(strata)
    assert low < middle < high
    assert high - low == pytest.approx(2 * 1.96 * 1.1 / math.sqrt(160), rel=0.25)  # IQM: sd about 1.1 of the mean's
    assert iqm_interval(strata) == (middle, low, high)


def test_wilcoxon_is_exact_and_silent_below_six_settings() -> None:
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5]) is None
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 2**6)
    differences = [0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.75]
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = sum(r for r, d in zip(ranks, differences, strict=True) if d < 0)
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product([0, 1], repeat=7)]
    assert wilcoxon(differences) == pytest.approx(2 * sum(s <= observed for s in sums) / 2**7)
    assert wilcoxon([0.0] * 6) == 1.0


def test_mean_ranks_share_ties() -> None:
    assert mean_ranks([[70.0, 72.0, 71.0], [60.0, 60.0, 50.0]]) == [(3 + 1.5) / 2, (1 + 1.5) / 2, (2 + 3) / 2]


def test_settings_of_as_many_seeds_are_resampled_alike() -> None:
    """What is drawn depends on sizes alone: a gain that is larger by two everywhere has an interval two higher."""
    strata = [list(np.random.default_rng(i).normal(size=5)) for i in range(4)]
    first = iqm_interval(strata, resamples=5_000, enumerated=0)
    moved = iqm_interval([[x + 2.0 for x in stratum] for stratum in strata], resamples=5_000, enumerated=0)
    assert moved == pytest.approx([x + 2.0 for x in first])


def test_a_drawn_interval_is_near_that_of_a_plain_loop() -> None:
    strata = [list(np.random.default_rng(i).normal(size=n)) for i, n in enumerate((4, 6, 9))]
    rng = np.random.default_rng(0)
    means = [
        stats.trim_mean(np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata]), 0.25)
        for _ in range(4_000)
    ]
    _, low, high = iqm_interval(strata, resamples=50_000)
    assert (low, high) == pytest.approx((np.quantile(means, 0.025), np.quantile(means, 0.975)), abs=0.04)


def test_a_million_resamples_are_drawn_of_few_values_only() -> None:
    assert [draws(values) for values in (15, 20, 21, 1500)] == [1_000_000, 1_000_000, 30_000, 30_000]

"""Statistics over seeds, against values worked out by hand and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.studies.statistics import interquartile_mean, interval, probability_better, success_interval

pytestmark = pytest.mark.float64


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_few_failures_do_not_reach_the_middle_and_many_do():
    assert interquartile_mean([1.0] * 8 + [math.inf] * 2) == 1.0
    assert interquartile_mean([1.0] * 7 + [math.inf] * 3) == math.inf


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).lognormal(size=12)
    low, high = interval(values)
    expected = stats.bootstrap(
        (values,), interquartile_mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert low < interquartile_mean(values) < high
    assert (float(low), float(high)) == pytest.approx(tuple(expected), rel=0.05)


def test_the_interval_works_along_an_axis_and_repeats_itself():
    values = np.random.default_rng(0).random((5, 10))
    low, high = interval(values, axis=1)
    assert low.shape == high.shape == (5,)
    for row in range(5):
        assert (low[row], high[row]) == interval(values[row])


def test_one_seed_has_no_spread():
    assert interval([0.3]) == (0.3, 0.3)


def test_intervals_of_failures_are_infinite_and_not_undefined():
    low, high = interval([1.0, 1.0, 1.0, math.inf, math.inf])
    assert low == 1.0
    assert high == math.inf


def test_a_success_rate_has_wilsons_interval():
    low, high = success_interval(10, 10)
    assert high == 1.0
    assert low == pytest.approx(10 / (10 + stats.norm.ppf(0.975) ** 2), rel=1e-3)


def test_paired_comparison_counts_ties_half():
    assert probability_better([1.0, 2.0, 3.0, math.inf], [2.0, 1.0, 3.0, math.inf]) == (1 + 0 + 0.5 + 0.5) / 4

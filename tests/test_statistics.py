"""Statistics over seeds, against values worked out by hand and against scipy."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.studies.statistics import (
    holm,
    interquartile_mean,
    interval,
    least_p,
    percentiles,
    probability_better,
    profile,
    rank_lead,
    seeds_needed,
    sign_flip_test,
    success_interval,
)  # fmt: skip

pytestmark = pytest.mark.float64


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_few_failures_do_not_reach_the_middle_and_many_do():
    assert interquartile_mean([1.0] * 8 + [math.inf] * 2) == 1.0
    assert interquartile_mean([1.0] * 7 + [math.inf] * 3) == math.inf


def test_the_interval_is_scipys_percentile_bootstrap_at_an_expanded_level():
    values = np.random.default_rng(0).lognormal(size=12)
    low, high = interval(values)
    level = float(1.0 - 2.0 * stats.norm.cdf(-stats.t.ppf(0.975, 11) * math.sqrt(12 / 11)))
    assert level == pytest.approx(0.9785, abs=1e-3)
    expected = stats.bootstrap(
        (values,), interquartile_mean, method="percentile", n_resamples=20000, confidence_level=level,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert low < interquartile_mean(values) < high
    assert (float(low), float(high)) == pytest.approx(tuple(expected), rel=0.05)


@pytest.mark.parametrize(
    ("draw", "count", "least", "most"),
    [
        ("normal", 5, 0.92, 0.97),
        ("normal", 10, 0.95, 0.985),
        ("lognormal", 5, 0.91, 0.97),
        ("lognormal", 10, 0.94, 0.985),
    ],
)
def test_intervals_cover_what_they_say(draw, count, least, most):
    """Over 1500 simulated studies of n seeds; plain percentiles cover 88 to 91% at 5 and 93 to 95% at 10."""
    chance = np.random.default_rng(0)
    values = getattr(chance, draw)(size=(1500, count))
    whole = getattr(chance, draw)(size=(200_000, count))
    low, high = interval(values, axis=1)
    truth = interquartile_mean(whole, axis=1).mean()
    covered = float(((low <= truth) & (truth <= high)).mean())
    assert least < covered < most


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


def test_a_share_with_halves_has_wilsons_interval():
    for successes, count in ((0, 4), (3, 7), (10, 10)):
        expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
        assert success_interval(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert success_interval(2.5, 5) == pytest.approx((0.1704, 0.8296), abs=1e-4)


def flips(differences):
    """The sign-flip test by going through all flips."""
    ranks = stats.rankdata(np.abs(differences))
    observed = abs((np.sign(differences) * ranks).sum())
    sums = [abs((np.array(signs) * ranks).sum()) for signs in itertools.product((1, -1), repeat=len(ranks))]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize("seed", range(5))
def test_paired_tests_are_exact(seed):
    chance = np.random.default_rng(seed)
    ours, theirs = chance.normal(size=9), chance.normal(0.6, 1.0, size=9)
    wilcoxon: Any = stats.wilcoxon(ours, theirs, method="exact")
    assert sign_flip_test(ours, theirs) == pytest.approx(wilcoxon.pvalue)
    assert sign_flip_test(ours, theirs) == pytest.approx(flips(ours - theirs))
    rounded = np.round(ours), np.round(theirs)
    apart = rounded[0] != rounded[1]
    assert sign_flip_test(*rounded) == pytest.approx(flips((rounded[0] - rounded[1])[apart]))


def test_very_many_pairs_are_no_other_test():
    ours, theirs = np.random.default_rng(0).normal(size=(2, 1500))
    wilcoxon: Any = stats.wilcoxon(ours, theirs, method="approx", correction=True)
    assert sign_flip_test(ours, theirs) == pytest.approx(wilcoxon.pvalue, rel=1e-3)


def test_divergence_is_the_worst_of_all_and_no_difference_from_another():
    assert sign_flip_test([1.0] * 8, [math.inf] * 8) == pytest.approx(2 / 2**8)
    assert sign_flip_test([math.inf] * 3, [math.inf] * 3) == 1.0
    mixed = [math.inf, 1.0, 1.0, 1.0], [2.0, 1.1, 1.2, 1.3]
    assert sign_flip_test(*mixed) == pytest.approx(flips(np.array([9.0, -0.1, -0.2, -0.3])))


def test_tests_are_level_under_no_difference():
    chance = np.random.default_rng(1)
    found = [sign_flip_test(*chance.normal(size=(2, 10))) for _ in range(2000)]
    assert 0.035 < np.mean(np.array(found) < 0.05) < 0.055


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_how_many_seeds_a_comparison_needs():
    for comparisons in (1, 3, 18, 72):
        seeds = seeds_needed(comparisons)
        assert comparisons * least_p(seeds) <= 0.05 < comparisons * least_p(seeds - 1)
    assert seeds_needed(1) == 6
    assert sign_flip_test([0.0] * 6, [1.0] * 6) == least_p(6)


def test_profiles_and_percentiles_are_of_runs():
    runs = [3.0, 1.0, math.inf, 2.0]
    assert profile(runs, np.array([0.5, 1.0, 2.5, 1e9])).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert percentiles(runs, (0, 20, 25, 50, 60, 100)) == [1.0, 1.0, 1.5, 2.5, 3.0, math.inf]
    assert percentiles([1.0, 2.0, math.inf, math.inf, math.inf], (50,)) == [math.inf]
    for count in range(1, 21):
        values = np.random.default_rng(count).permutation(count).astype(float)
        assert percentiles(values, (50,)) == [np.median(values)]


def test_the_way_a_test_leans_is_that_of_its_ranks():
    """Sixteen pairs a little higher and fourteen far lower: fewer wins, and yet the test tells ours as lower."""
    theirs = np.full(30, 100.0)
    ours = theirs + np.array([*range(1, 17), *(-rank for rank in range(17, 31))])
    assert probability_better(ours, theirs) < 0.5
    assert sign_flip_test(ours, theirs) < 0.05
    assert rank_lead(ours, theirs) == pytest.approx((sum(range(17, 31)) - sum(range(1, 17))) / sum(range(1, 31)))
    assert rank_lead(theirs, ours) == -rank_lead(ours, theirs)
    assert rank_lead([1.0, 2.0], [1.0, math.inf]) == 1.0
    assert rank_lead([1.0], [1.0]) == 0.0

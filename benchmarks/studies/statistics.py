"""Statistics over seeds: robust means with intervals, success rates, paired comparisons and what corrects for many."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray

_SEED = 0
RESAMPLES = 2000
_BLOCK = 50


def interquartile_mean(values: Values, axis: int = 0) -> np.ndarray:
    """Mean of the middle half; infinite values are the largest, and stay infinite where they reach the middle."""
    return stats.trim_mean(np.asarray(values, dtype=float), 0.25, axis=axis)


def interval(values: Values, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the interquartile mean along `axis` by the expanded percentile bootstrap over seeds.

    Percentiles are those of a normal distribution as wide as the quantile of Student's t is, times √(n/(n-1)): plain
    ones cover too little of few seeds (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).
    """
    data = np.asarray(values, dtype=float)
    axis %= data.ndim
    if data.shape[axis] < 2:
        only = np.take(data, 0, axis)
        return only, only
    draw = np.random.default_rng(_SEED).integers(0, data.shape[axis], (RESAMPLES, data.shape[axis]))
    # Blocks of resamples, since each call of scipy takes about a millisecond and all at once might take much memory.
    blocks = [interquartile_mean(np.take(data, rows, axis), axis + 1) for rows in np.split(draw, RESAMPLES // _BLOCK)]
    means = np.concatenate([np.moveaxis(block, axis, 0) for block in blocks])
    # Between infinities no value can be interpolated, so the bounds are resampled means themselves.
    tail = _expanded_tail(data.shape[axis])
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0, method="nearest")
    return low, high


def success_interval(successes: float, count: int) -> tuple[float, float]:
    """95% interval of a success rate (Wilson); halves are allowed, as of ties."""
    share, z = successes / count, float(stats.norm.ppf(0.975))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    width = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    # At the ends rounding would leave a last bit.
    return 0.0 if share == 0 else middle - width, 1.0 if share == 1 else middle + width


def probability_better(ours: Values, theirs: Values) -> float:
    """Share of paired seeds on which ours is lower; ties, as where both diverged, count half."""
    pairs = list(zip(ours, theirs, strict=True))
    return sum(1.0 if one < other else 0.5 if one == other else 0.0 for one, other in pairs) / len(pairs)


def sign_flip_test(ours: Values, theirs: Values) -> float:
    """Two-sided p of paired values by the sum of their signed ranks over all flips of signs, exact with ties.

    Ranks, as in Wilcoxon's test, so that a divergence, which is infinitely worse, is just the worst.
    """
    doubled = _doubled_ranks(ours, theirs)
    if not len(doubled):
        return 1.0
    shares = np.ones(1)
    for rank in np.abs(doubled):  # which share of the flips gives each sum of the ranks that are positive
        shares = 0.5 * (np.pad(shares, (0, rank)) + np.pad(shares, (rank, 0)))
    least = min(int(doubled[doubled > 0].sum()), -int(doubled[doubled < 0].sum()))
    return float(min(1.0, 2.0 * shares[: least + 1].sum()))


def rank_lead(ours: Values, theirs: Values) -> float:
    """Which way `sign_flip_test` leans: the sum of signed ranks over that of all; 1 where ours is always lower."""
    doubled = _doubled_ranks(ours, theirs)
    return float(doubled.sum() / np.abs(doubled).sum()) if len(doubled) else 0.0


def _doubled_ranks(ours: Values, theirs: Values) -> np.ndarray:
    """Twice the rank, of which ties have halves, of every pair that differs; positive where ours is lower."""
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    ranks = stats.rankdata([abs(one - other) for one, other in pairs])
    return np.rint(2.0 * ranks).astype(int) * [1 if one < other else -1 for one, other in pairs]


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method."""
    order, corrected, most = np.argsort(values, kind="stable"), np.zeros(len(values)), 0.0
    for rank, index in enumerate(order):
        most = max(most, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = most
    return corrected.tolist()


def least_p(seeds: int) -> float:
    """The smallest two-sided p that so many paired seeds can have: all of one sign."""
    return min(1.0, 2.0 ** (1 - seeds))


def seeds_needed(comparisons: int, level: float = 0.05) -> int:
    """Paired seeds from which on a comparison that wins on all of them can be significant among so many."""
    return max(1, math.ceil(1.0 - math.log2(level / comparisons)))


def profile(values: Values, at: np.ndarray) -> np.ndarray:
    """Performance profile: the share of runs whose loss is at most each of `at`."""
    return np.searchsorted(np.sort(np.asarray(values, dtype=float)), at, side="right") / len(values)


def percentiles(values: Values, wanted: Sequence[float]) -> list[float]:
    """Percentiles of runs: a run's own, or the middle of the two that it lies between; a divergence is the worst."""
    runs, found = np.sort(np.asarray(values, dtype=float)), []
    for percent in wanted:
        place = percent * len(runs) / 100
        low, high = math.ceil(place) - 1, math.floor(place)
        found.append(0.5 * float(runs[max(0, low)] + runs[min(high, len(runs) - 1)]))
    return found


def _expanded_tail(count: int) -> float:
    """The share of resamples left out at either end."""
    return float(stats.norm.cdf(stats.t.ppf(0.025, count - 1) * math.sqrt(count / (count - 1))))

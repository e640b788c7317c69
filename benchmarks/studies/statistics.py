"""Statistics over seeds: robust means with intervals, success rates, paired comparisons."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

_SEED = 0
RESAMPLES = 2000
_BLOCK = 50


def interquartile_mean(values: Sequence[float] | np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of the middle half; infinite values are the largest, and stay infinite where they reach the middle."""
    return stats.trim_mean(np.asarray(values, dtype=float), 0.25, axis=axis)


def interval(values: Sequence[float] | np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the interquartile mean along `axis` by the percentile bootstrap over seeds."""
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
    low, high = np.quantile(means, [0.025, 0.975], axis=0, method="nearest")
    return low, high


def success_interval(successes: int, count: int) -> tuple[float, float]:
    """95% interval of a success rate (Wilson)."""
    found = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return found.low, found.high


def probability_better(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of paired seeds on which ours is lower; ties, as where both diverged, count half."""
    pairs = list(zip(ours, theirs, strict=True))
    return sum(1.0 if one < other else 0.5 if one == other else 0.0 for one, other in pairs) / len(pairs)

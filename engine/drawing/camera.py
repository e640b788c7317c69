"""How a rollout is seen, step by step: still where bodies fill the picture, else moving and zooming with them."""

from collections.abc import Callable, Sequence

import numpy as np

from engine.drawing.scene import Frame

Camera = Callable[[int], Frame]
"""The frame in which a step is seen."""

# Of a still picture bodies take at least this share of the side at every step, else the camera moves.
LEAST_FILLED = 0.3
# How much longer than the bodies' box its union with what they should reach may be; goals further off are pointed at.
_REACH = 1.9
# A moving camera takes this share of the rollout into account before and after each step.
_WINDOW = 0.02


def around_bodies(places: Sequence[np.ndarray], goals: np.ndarray, least: float = 1e-3) -> Camera:
    """One camera for rollouts that are shown together, in which every finite body is inside at every step.

    Args:
        places: of the bodies, [T+1, n, 2] for each rollout.
        goals: [m, 2], inside as well where that does not make bodies too small.
        least: the shortest side that a picture may show.
    """
    low, high = _boxes(places)
    whole = Frame.filling(np.concatenate([low, high, goals]), least)
    sides = (high - low).max(1)
    if (sides >= LEAST_FILLED * whole.extent[0]).all() or len(low) == 1:
        return lambda t: whole
    window = max(round(_WINDOW * len(low)), 1)
    low, high = _smooth(low, np.minimum, window), _smooth(high, np.maximum, window)
    return lambda t: _near(low[t], high[t], goals, least)


def following(places: np.ndarray, slack: float) -> np.ndarray:
    """Where to look, [T+1], to see what moves along a line at `places` [T+1]: never further off than `slack`."""
    finite = np.isfinite(places)
    if not finite.any():
        return np.zeros(len(places))
    steps = np.arange(len(places))
    places = np.interp(steps, steps[finite], places[finite])
    smooth = _mean(places[:, None], max(len(places) // 8, 1))[:, 0]
    return np.clip(smooth, places - slack, places + slack)


def _boxes(places: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) [T+1, 2] of the finite bodies at each step, over all rollouts; steps without any are as before."""
    together = np.concatenate(places, axis=1)
    finite = np.isfinite(together).all(-1, keepdims=True)
    low = np.where(finite, together, np.inf).min(1)
    high = np.where(finite, together, -np.inf).max(1)
    known = np.isfinite(low[:, 0])
    if not known.any():
        return np.zeros_like(low), np.zeros_like(high)
    last = np.maximum.accumulate(np.where(known, np.arange(len(low)), known.argmax()))
    return low[last], high[last]


def _near(low: np.ndarray, high: np.ndarray, goals: np.ndarray, least: float) -> Frame:
    reach = _REACH * max(float((high - low).max()), least)
    return Frame.filling(np.concatenate([[low, high], np.clip(goals, high - reach, low + reach)]), least)


def _smooth(values: np.ndarray, extreme: np.ufunc, window: int) -> np.ndarray:
    """Means over `window` of extremes over twice as much, so that no value is beyond them; [T+1, 2]."""
    padded = np.concatenate([values[:1].repeat(2 * window, 0), values, values[-1:].repeat(2 * window, 0)])
    views = np.lib.stride_tricks.sliding_window_view(padded, 4 * window + 1, axis=0)
    return _mean(extreme.reduce(views, axis=-1), window)


def _mean(values: np.ndarray, window: int) -> np.ndarray:
    """Means of [T+1, m] over `window` steps before and after."""
    padded = np.concatenate([values[:1].repeat(window, 0), values, values[-1:].repeat(window, 0)])
    sums = np.concatenate([np.zeros_like(padded[:1]), padded.cumsum(0)])
    return (sums[2 * window + 1 :] - sums[: -2 * window - 1]) / (2 * window + 1)

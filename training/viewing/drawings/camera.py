"""How a rollout is seen, step by step: still where bodies fill the picture, else moving and zooming with them."""

from collections.abc import Callable, Sequence

import numpy as np

from training.viewing.scene import INSIDE, Frame

Camera = Callable[[int], Frame]
"""The frame in which a step is seen."""

# Of a still picture bodies take at least this share of the side at every step, else the camera moves, and then at
# least `_FILLED`: goals further off are pointed at.
LEAST_FILLED, _FILLED = 0.25, 1 / 3
# A moving camera takes this share of the rollout into account before and after each step, but leaves no more space
# about the bodies than this share of what they take.
_WINDOW, _SPACE = 0.03, 0.2


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
    window, space = max(round(_WINDOW * len(low)), 1), _SPACE * sides[:, None]
    wide_low = np.maximum(_smooth(low, np.minimum, window), low - space)
    wide_high = np.minimum(_smooth(high, np.maximum, window), high + space)

    def moving(t: int) -> Frame:
        reach = (np.diff(INSIDE, axis=0)[0] * max(sides[t], least) / _FILLED + high[t] - low[t]) / 2
        seen = np.clip(goals, high[t] - reach, low[t] + reach)
        return Frame.filling(np.concatenate([[wide_low[t], wide_high[t]], seen]), least)

    return moving


def boxed(places: Sequence[np.ndarray], box: np.ndarray) -> Camera:
    """One camera for rollouts in a box with corners [m, 2], which stands still unless bodies leave the box."""
    low, high = _boxes(places)
    return lambda t: Frame.filling(np.concatenate([box, [low[t], high[t]]]))


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
        return np.zeros_like(low), np.zeros_like(high)  # nothing to see
    last = np.maximum.accumulate(np.where(known, np.arange(len(low)), known.argmax()))
    return low[last], high[last]


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

"""The adjoint made visible: its size per body as colours, and per step as curves."""

from collections.abc import Mapping

import numpy as np

from engine.norms import norm_of_array
from training.viewing.drawings import Drawing, Frame, Scene, shades
from training.viewing.palette import GREY, PALE, Style, styles_of
from training.viewing.scene import MEDIUM, SMALL

# How far down names of gradients may reach from the top.
_ROOM = 0.23
# Sizes further than this below the largest are shown as if they were just so small.
_RANGE = 1e-9


class Profile:
    """Sizes of the adjoints of one rollout.

    Args:
        adjoints: for each variant λ [T+1, *state_shape].
        drawing: knows what a body is.

    Attributes:
        norms: for each variant |λ_t| [T+1].
        low, high: the range of sizes that colours stand for, over all variants.
    """

    def __init__(self, adjoints: Mapping[str, np.ndarray], drawing: Drawing):
        self.norms = {name: norm_of_array(swept.reshape(len(swept), -1)) for name, swept in adjoints.items()}
        self._sizes = {name: drawing.sizes(swept) for name, swept in adjoints.items()}
        self.low, self.high = _range(np.concatenate([sizes.ravel() for sizes in self._sizes.values()]))

    def shades(self, variant: str, t: int) -> np.ndarray:
        """Colours [bodies] of a variant's adjoint at a step."""
        return shades(self._sizes[variant][t], self.low, self.high)

    def draw(self, scene: Scene, t: int, returning: bool) -> None:
        """|λ| over the steps, from T back to t, on a log scale; only the axes before the adjoint returns."""
        low, high = (np.log10(value) for value in _range(np.concatenate(list(self.norms.values()))))
        steps = len(next(iter(self.norms.values()))) - 1
        frame = Frame.of_box((0.0, low), (max(steps, 1), max(high, low + 1.0)), (0.14, 0.24), (0.95, 0.72))
        self._axes(scene, frame, steps)
        styles, rows = styles_of(self.norms), list(self.norms)
        step = min(0.05, _ROOM / len(rows))
        for name in sorted(rows, key=lambda name: styles[name].dashes):
            style, norms, height = styles[name], self.norms[name], 0.97 - step * rows.index(name)
            self._line(
                scene,
                np.array([(0.03, height - step / 2), (0.115, height - step / 2), (0.2, height - step / 2)]),
                style,
            )
            size = min(MEDIUM, 0.84 * step)
            if not returning:
                scene.text(name, (0.23, height), size, style.rgb)
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                logs = np.clip(np.log10(norms), low, None)
            curve = np.stack([np.arange(t, steps + 1), logs[t:]], axis=1)
            curve[norms[t:] == 0] = np.nan
            self._line(scene, frame(curve), style)
            if np.isfinite(curve[0]).all():
                scene.circles(frame(curve[:1]), 0.016, style.rgb)
            scene.text(f"{name}   |adjoint| {norms[t]:.2g}", (0.23, height), size, style.rgb)

    def _line(self, scene: Scene, points: np.ndarray, style: Style) -> None:
        """A line in a style; marks stand at a few of its points, as in figures."""
        scene.polyline(points, 0.01, style.rgb, style.lengths)
        if style.marker:
            scene.marks(points[style.marked(len(points))], style.marker, 0.016, style.rgb)

    def _axes(self, scene: Scene, frame: Frame, steps: int) -> None:
        (left, floor), (right, ceiling) = (0.14, 0.24), (0.95, 0.72)
        lowest, highest = np.ceil(frame.world((0, floor))[1]), np.floor(frame.world((0, ceiling))[1])
        for exponent in np.unique(np.linspace(lowest, highest, 5).round()):
            height = frame([(0.0, exponent)])[0, 1]
            scene.lines([(left, height)], [(right, height)], 0.002, PALE)
            scene.text(f"1e{int(exponent)}", (0.02, height + 0.018), SMALL, GREY)
        scene.lines([(left, floor)], [(right, floor)], 0.003, GREY)
        scene.text("t = 0", (left, floor - 0.01), SMALL, GREY)
        scene.text(f"{steps}", (right - 0.06, floor - 0.01), SMALL, GREY)
        self._colour_bar(scene)

    def _colour_bar(self, scene: Scene) -> None:
        x = np.linspace(0.14, 0.95, 82)
        values = np.geomspace(self.low, self.high, len(x) - 1)
        begin, end = np.stack([x[:-1], np.full(81, 0.11)], 1), np.stack([x[1:], np.full(81, 0.11)], 1)
        scene.lines(begin, end, 0.03, shades(values, self.low, self.high))
        scene.text(f"{self.low:.0e}", (0.1, 0.085), SMALL, GREY)
        scene.text("|adjoint| of a body", (0.34, 0.085), SMALL, GREY)
        scene.text(f"{self.high:.0e}", (0.84, 0.085), SMALL, GREY)


def _range(values: np.ndarray) -> tuple[float, float]:
    """(low, high) of the finite sizes above 0, low < high."""
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 1e-3, 1.0
    high = float(values.max())
    low = max(float(values.min()), high * _RANGE)
    return (low, high) if low < 0.999 * high else (0.1 * high, high)

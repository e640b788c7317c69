"""The Kuramoto-Sivashinsky equation on its ring."""

import numpy as np

from engine.systems.kuramoto_sivashinsky import KuramotoSivashinsky
from training.viewing.drawings.drawing import Drawing, largest
from training.viewing.palette import BLACK, BLUE, GREEN, GREY, PALE, balance
from training.viewing.scene import SMALL, Frame

# The profile's place in a picture, and the strip's above it.
_LOW, _HIGH = (0.14, 0.16), (0.95, 0.42)
_STRIP = (0.48, 0.8)
_ROWS = 48


class RingDrawing(Drawing):
    """Below u(x) now, with the actuators' amplitudes as arrows; above it how u came about, time upward.

    Bodies are the points. World coordinates are x and u. Pushing adds the height of the drag about its start.

    Args:
        goal: the state [N] that is wanted, if there is one.
    """

    def __init__(self, system: KuramotoSivashinsky, goal: np.ndarray | None = None):
        self.x, self.length, self.actuators = system.places, system.length, system.actuators
        self.goal = goal if goal is not None and np.shape(goal) == self.x.shape else None

    def frame(self, states):
        height = max(largest(states), 0.0 if self.goal is None else largest(self.goal))
        return Frame.of_box((0.0, -height), (self.length, height), _LOW, _HIGH)

    def draw(self, scene, frame, moment):
        height = float(frame.world((0.0, _HIGH[1]))[1])
        self._strip(scene, frame, moment, height)
        zero = frame([(0.0, 0.0), (self.length, 0.0)])
        scene.lines(zero[:1], zero[1:], 0.003, PALE)
        scene.text(f"{height:.2g}", (0.02, _HIGH[1] + 0.015), SMALL, GREY)
        scene.text("u", (0.02, zero[0, 1] + 0.015), SMALL, BLUE)
        if self.goal is not None:
            scene.polyline(frame(np.stack([self.x, self.goal], 1)), 0.01, GREEN, dashes=(3.0, 1.5))
        points = frame(np.stack([self.x, moment.state], axis=1))
        scene.polyline(points, 0.01, BLUE)
        if moment.shades is not None:
            finite = np.isfinite(moment.state)
            scene.circles(points[finite], 0.012, moment.shades[finite])
        if moment.control is not None:
            places = frame([(self.length * i / self.actuators, 0.0) for i in range(self.actuators)])
            rise = 0.12 * moment.control / largest(moment.controls)
            scene.arrows(places, places + np.stack([np.zeros(self.actuators), rise], 1), 0.01, BLACK)

    def push(self, state, start, drag):
        away = (self.x - start[0] + self.length / 2) % self.length - self.length / 2
        return state + drag[1] * np.exp(-0.5 * (away / (0.05 * self.length)) ** 2)

    def _strip(self, scene, frame, moment, height) -> None:
        """A row of coloured cells for each of up to `_ROWS` steps, up to now."""
        total = len(moment.states)
        steps = np.unique(np.linspace(0, total - 1, min(total, _ROWS)).round().astype(int))
        tall = (_STRIP[1] - _STRIP[0]) / len(steps)
        edges = frame([(x, 0.0) for x in np.append(self.x, self.length)])[:, 0]
        for row, step in enumerate(steps[steps <= moment.t]):
            level = np.full(len(self.x), _STRIP[0] + (row + 0.5) * tall)
            begin, end = np.stack([edges[:-1], level], 1), np.stack([edges[1:], level], 1)
            scene.lines(begin, end, 1.6 * tall, balance(moment.states[step], 0.7 * height))  # without gaps between rows
        scene.text("time", (0.02, (_STRIP[0] + _STRIP[1]) / 2), SMALL, GREY)

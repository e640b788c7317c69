"""A quantum particle in its box."""

import numpy as np

from engine.norms import norm_of_array
from engine.systems.quantum import LENGTH, QuantumBox
from training.viewing.drawings.drawing import Drawing, largest
from training.viewing.palette import BLACK, BLUE, GREEN, GREY, SKY
from training.viewing.scene import SMALL, Frame

# Momentum that a drag over a unit length gives.
_PUSH = 4.0


class WaveDrawing(Drawing):
    """|ψ|² over x, its target, and the field as an arrow toward the lower potential. Bodies are the grid points.

    World coordinates are x and |ψ|² per point. Pushing multiplies ψ by exp(i p x).

    Args:
        goal: the target state [N], if there is one.
    """

    def __init__(self, system: QuantumBox, goal: np.ndarray | None = None):
        self.x = system.dx * np.arange(1, system.points + 1)
        self.goal = goal

    def frame(self, states):
        density = (states**2).sum(1)
        peaks = [largest(density), 0.0 if self.goal is None else largest(self.goal**2)]
        return Frame.of_box((0.0, 0.0), (LENGTH, max(peaks)), (0.06, 0.16), (0.94, 0.7))

    def draw(self, scene, frame, moment):
        floor, ceiling = frame([(0.0, 0.0), (LENGTH, 0.0)]), 0.72
        scene.lines(floor[:1], floor[1:], 0.008, GREY)
        scene.lines(floor, [(x, ceiling) for x, _ in floor], 0.012, GREY)
        density = (moment.state**2).sum(0)
        points = frame(np.stack([self.x, density], axis=1))
        finite = np.isfinite(density)
        base = frame(np.stack([self.x, np.zeros_like(self.x)], axis=1))
        colour = SKY if moment.shades is None else moment.shades[finite]
        scene.lines(base[finite], points[finite], max(0.006, 0.6 / len(self.x)), colour)
        scene.polyline(np.concatenate([floor[:1], points, floor[1:]]), 0.01, BLUE)
        scene.text("|psi|^2", (0.08, 0.12), SMALL, BLUE)
        if self.goal is not None:
            target = frame(np.stack([self.x, self.goal**2], axis=1))
            scene.polyline(np.concatenate([floor[:1], target, floor[1:]]), 0.012, GREEN, dashes=(3.0, 1.5))
            scene.text("- - target", (0.3, 0.12), SMALL, GREEN)
        if moment.control is not None:
            # H holds + u x: for u > 0 the particle is drawn to the left.
            pull = -0.3 * float(moment.control[0]) / largest(moment.controls)
            scene.arrows([(0.5, 0.775)], [(0.5 + pull, 0.775)], 0.016, BLACK)
            scene.text("force", (0.78, 0.12), SMALL, BLACK)

    def sizes(self, adjoints):
        return norm_of_array(adjoints, axis=1)

    def push(self, state, start, drag):
        phase = np.exp(1j * _PUSH * drag[0] * self.x)
        wave = (state[0] + 1j * state[1]) * phase
        return np.stack([wave.real, wave.imag])

"""A fluid in its tank, its jets and where it should be."""

import numpy as np

from engine.drawing.drawing import Drawing, largest
from engine.drawing.scene import BLACK, BLUE, GREEN, GREY, VERMILION, Frame
from engine.systems.fluid import Fluid

# Velocity that a drag over a unit length gives to what is within this distance of its start.
_PUSH, _GRASP = 3.0, 0.15


class TankDrawing(Drawing):
    """The tank from the side, its fluid as dots, jets as circles with arrows for their pushes, a cross at the target.

    Bodies are the jets, then the particles. In space the second axis points away from the viewer. Pushing moves all
    the fluid near the start of the drag.

    Args:
        goal: the target, one coordinate for each axis, if there is one.
    """

    def __init__(self, system: Fluid, goal: np.ndarray | None = None):
        self.dim, self.jets, self.size = system.dim, system.jets, np.array(system.size)[[0, -1]]
        self.goal = None if goal is None else goal[[0, -1]]
        self._dot = 0.5 * system.spacing
        self._colours = np.array([VERMILION] * system.jets + [BLUE] * system.particles, dtype=np.uint32)

    def frame(self, states):
        return Frame.around(np.stack([np.zeros(2), self.size]), margin=0.1)

    def draw(self, scene, frame, moment):
        corners = frame(np.array([(0.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]) * self.size)
        scene.polyline(corners, 0.004, GREY)
        places = frame(self._seen(moment.state))
        finite = np.isfinite(moment.state).all(0)
        dot = float(frame([(self._dot, 0.0)])[0, 0] - frame([(0.0, 0.0)])[0, 0])
        radii = np.where(np.arange(len(places)) < self.jets, 0.01, dot)
        colours = self._colours if moment.shades is None else moment.shades
        # Jets last: they would drown.
        order = np.roll(np.arange(len(places)), -self.jets)
        order = order[finite[order]]
        scene.circles(places[order], radii[order], colours[order])
        if self.goal is not None:
            begin = frame(self.goal)[0] + np.array([(-0.025, -0.025), (-0.025, 0.025)])
            scene.lines(begin, begin + np.array([(0.05, 0.05), (0.05, -0.05)]), 0.008, GREEN)
        if moment.control is not None:
            pushes = moment.control[[0, self.dim - 1]].T / largest(moment.controls[:, : self.dim])
            scene.arrows(places[: self.jets], places[: self.jets] + 0.15 * pushes, 0.006, BLACK)

    def sizes(self, adjoints):
        return np.linalg.norm(adjoints, axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        near = np.linalg.norm(self._seen(pushed) - start, axis=1) < _GRASP
        near[: self.jets] = False
        pushed[self.dim, near] += _PUSH * drag[0]
        pushed[2 * self.dim - 1, near] += _PUSH * drag[1]
        return pushed

    def _seen(self, state: np.ndarray) -> np.ndarray:
        """Positions from the side, [bodies, 2]."""
        return state[[0, self.dim - 1]].T

"""Bodies in space, and the thrusters that steer some of them."""

import numpy as np

from engine.drawing.drawing import Drawing, largest
from engine.drawing.scene import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION, Frame
from engine.systems.n_body import NBody

# Velocity that a drag over a unit length gives.
_PUSH = 1.0
_LONGEST_TRAIL = 40
# With more bodies trails would cover the picture.
_MOST_TRAILS = 200


class BodiesDrawing(Drawing):
    """Bodies as large as the cube root of their mass, those with thrusters in another colour, with short trails.

    Three dimensions are seen along z. Pushing changes a body's velocity.

    Args:
        goal: where bodies should be, if anywhere: (x, y) or rows x, y, (z) with a column for each.
    """

    def __init__(self, system: NBody, goal: np.ndarray | None = None):
        self.dim, self.thrusters = system.dim, list(system.thrusters)
        self.goal = None if goal is None else goal.reshape(len(goal), -1)[:2].T
        masses = np.array(system.masses)
        share = np.cbrt(masses / max(masses.max(), 1e-30))
        small = min(0.008, 0.1 / len(masses) ** 0.5)
        self._radii = small * (1.0 + 2.0 * share)
        self._colours = np.full(len(masses), BLUE, dtype=np.uint32)
        self._colours[masses > 0.1 * masses.max()] = ORANGE
        self._colours[self.thrusters] = VERMILION

    def frame(self, states):
        positions = np.moveaxis(states[:, :2], 1, -1).reshape(-1, 2)
        goal = np.zeros((0, 2)) if self.goal is None else self.goal
        return Frame.around(np.concatenate([positions, goal]), margin=0.16)

    def draw(self, scene, frame, moment):
        if self.goal is not None:
            for place in frame(self.goal):
                begin = place + np.array([(-0.02, -0.02), (-0.02, 0.02)])
                scene.lines(begin, begin + np.array([(0.04, 0.04), (0.04, -0.04)]), 0.006, GREEN)
        if len(self._radii) <= _MOST_TRAILS:
            for trail in np.moveaxis(moment.states[max(moment.t - _LONGEST_TRAIL, 0) : moment.t + 1, :2], 2, 0):
                scene.polyline(frame(trail), 0.003, SKY)
        places = frame(moment.state[:2].T)
        finite = np.isfinite(moment.state).all(0)
        colours = self._colours if moment.shades is None else moment.shades
        scene.circles(places[finite], self._radii[finite], colours[finite])
        if moment.control is not None:
            pushed = places[self.thrusters]
            scene.arrows(pushed, pushed + 0.15 * moment.control[:2].T / largest(moment.controls), 0.006, BLACK)

    def sizes(self, adjoints):
        return np.linalg.norm(adjoints, axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        nearest = int(np.linalg.norm(pushed[:2].T - start, axis=1).argmin())
        pushed[self.dim : self.dim + 2, nearest] += _PUSH * drag
        return pushed

"""Drivers, their herd and where it should be."""

import numpy as np

from engine.drawing.drawing import Drawing, Moment, largest
from engine.drawing.scene import BLACK, BLUE, GREEN, SKY, VERMILION, Frame, Scene
from engine.norms import norm_of_array
from engine.systems.guidance import Guidance

# Velocity that a drag over a unit length gives.
_PUSH = 3.0
# With more particles velocities would cover the picture.
_MOST_VELOCITIES = 500


class HerdDrawing(Drawing):
    """Drivers large, evaders small, a cross at the target; velocities as lines, steering as arrows.

    Bodies are the particles, drivers first. Pushing changes a particle's velocity.

    Args:
        goal: (x, y) of the target, if there is one.
    """

    def __init__(self, system: Guidance, goal: np.ndarray | None = None):
        self.system, self.goal = system, goal
        drivers, evaders = system.drivers, system.evaders
        self._colours = np.array([VERMILION] * drivers + [BLUE] * evaders, dtype=np.uint32)
        small = min(0.011, 0.12 / evaders**0.5)
        self._radii = np.array([max(0.016, 1.3 * small)] * drivers + [small] * evaders)

    def frame(self, states):
        positions = np.moveaxis(states[:, :2], 1, -1).reshape(-1, 2)
        goal = np.zeros((0, 2)) if self.goal is None else self.goal[None]
        return Frame.around(np.concatenate([positions, goal]), margin=0.16)

    def draw(self, scene, frame, moment):
        if self.goal is not None:
            centre, arm = frame(self.goal)[0], 0.025
            begin = centre + np.array([(-arm, -arm), (-arm, arm)])
            scene.lines(begin, begin + np.array([(2 * arm, 2 * arm), (2 * arm, -2 * arm)]), 0.008, GREEN)
        finite = np.isfinite(moment.state).all(0)
        places = frame(moment.state[:2].T)
        if self.system.particles <= _MOST_VELOCITIES:
            ahead = frame((moment.state[:2] + 0.25 * moment.state[2:]).T)
            scene.lines(places[finite], ahead[finite], 0.003, SKY)
        colours = self._colours if moment.shades is None else moment.shades
        scene.circles(places[finite], self._radii[finite], colours[finite])
        self._steering(scene, places, moment)

    def sizes(self, adjoints):
        return norm_of_array(adjoints, axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        nearest = int(np.linalg.norm(pushed[:2].T - start, axis=1).argmin())
        pushed[2:, nearest] += _PUSH * drag
        return pushed

    def _steering(self, scene: Scene, places: np.ndarray, moment: Moment) -> None:
        """The accelerations c₁ r + c₂ r⊥ of the drivers, a fifth of the picture long at their largest."""
        if moment.control is None:
            return
        drivers = self.system.drivers
        now = self._accelerations(moment.states[moment.t], moment.controls[moment.t])
        steps = len(moment.controls)
        all_of_them = self._accelerations(moment.states[:steps], moment.controls)
        scene.arrows(places[:drivers], places[:drivers] + 0.2 * now.T / largest(all_of_them), 0.006, BLACK)

    def _accelerations(self, states: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """[..., 2, D]."""
        drivers = self.system.drivers
        centre = self.system._centre_scale * states[..., :2, drivers:].sum(-1, keepdims=True)
        away = states[..., :2, :drivers] - centre
        turned = np.stack([-away[..., 1, :], away[..., 0, :]], axis=-2)
        return controls[..., :1, :] * away + controls[..., 1:, :] * turned

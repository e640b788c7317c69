"""Drivers, their herd and where it should be."""

import numpy as np

from engine.norms import norm_of_array
from engine.systems.guidance import Guidance
from training.viewing.drawings.camera import around_bodies
from training.viewing.drawings.drawing import Drawing, Moment, fastest_of, largest
from training.viewing.drawings.ground import net
from training.viewing.palette import BLACK, BLUE, SKY, VERMILION, WHITE, flow
from training.viewing.scene import Scene

# Velocity that a drag over a unit length gives.
_PUSH = 3.0
# With more particles velocities would cover the picture; with more evaders colours show the flow.
_MOST_VELOCITIES, _MOST_PLAIN = 500, 20


class HerdDrawing(Drawing):
    """Drivers large, evaders small, a cross at the target; velocities as lines, steering as arrows.

    More than a few evaders are coloured by their speed. Bodies are the particles, drivers first. Pushing changes a
    particle's velocity.

    Args:
        goal: (x, y) of the target, if there is one.
    """

    def __init__(self, system: Guidance, goal: np.ndarray | None = None):
        self.system, self.goal = system, goal
        drivers, evaders = system.drivers, system.evaders
        self._colours = np.array([VERMILION] * drivers + [BLUE] * evaders, dtype=np.uint32)
        small = min(0.016, max(0.16 / evaders**0.5, 0.003))
        self._plain = evaders <= _MOST_PLAIN
        self._radii = np.array([max(0.02, 1.3 * small)] * drivers + [small] * evaders)

    def frame(self, states):
        return around_bodies([self._places(states).reshape(1, -1, 2)], self._goals())(0)

    def cameras(self, episodes):
        return [around_bodies([self._places(states) for states in episodes], self._goals())] * len(episodes)

    def fastest(self, episodes):
        if self._plain:
            return None
        return fastest_of([states[:, 2:, self.system.drivers :] for states in episodes])

    def draw(self, scene, frame, moment):
        net(scene, frame)
        if self.goal is not None:
            scene.goal(frame(self.goal))
        finite = np.isfinite(moment.state).all(0)
        places = frame(moment.state[:2].T)
        if self.system.particles <= _MOST_VELOCITIES:
            ahead = frame((moment.state[:2] + 0.25 * moment.state[2:]).T)
            scene.lines(places[finite], ahead[finite], 0.005, SKY)
        colours, shown = self._colours_at(scene, moment), np.flatnonzero(finite)
        if self._plain:
            scene.circles(places[shown], self._radii[shown], colours[shown])
        else:  # drivers last, that no crowd hides them
            scene.circles(places[shown[::-1]], self._radii[shown[::-1]], colours[shown[::-1]])
            drivers = shown[shown < self.system.drivers]
            scene.circles(places[drivers], 0.4 * self._radii[drivers], WHITE)
        self._steering(scene, places, moment)

    def sizes(self, adjoints):
        return norm_of_array(adjoints, axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        nearest = int(np.linalg.norm(pushed[:2].T - start, axis=1).argmin())
        pushed[2:, nearest] += _PUSH * drag
        return pushed

    def _colours_at(self, scene: Scene, moment: Moment) -> np.ndarray:
        if moment.shades is not None:
            return moment.shades
        if self._plain:
            return self._colours
        drivers = self.system.drivers
        speeds = np.linalg.norm(moment.state[2:, drivers:], axis=0)
        fastest = moment.fastest or largest(speeds)
        scene.speed_bar(fastest)
        return np.concatenate([self._colours[:drivers], flow(speeds, fastest)])

    def _places(self, states: np.ndarray) -> np.ndarray:
        """[T+1, particles, 2]."""
        return np.moveaxis(states[:, :2], 1, -1)

    def _goals(self) -> np.ndarray:
        return np.zeros((0, 2)) if self.goal is None else np.asarray(self.goal, dtype=float).reshape(1, 2)

    def _steering(self, scene: Scene, places: np.ndarray, moment: Moment) -> None:
        """The accelerations c₁ r + c₂ r⊥ of the drivers, a fifth of the picture long at their largest."""
        if moment.control is None:
            return
        drivers = self.system.drivers
        now = self._accelerations(moment.states[moment.t], moment.controls[moment.t])
        steps = len(moment.controls)
        all_of_them = self._accelerations(moment.states[:steps], moment.controls)
        scene.arrows(places[:drivers], places[:drivers] + 0.2 * now.T / largest(all_of_them), 0.01, BLACK)

    def _accelerations(self, states: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """[..., 2, D]."""
        drivers = self.system.drivers
        centre = self.system.centre_scale * states[..., :2, drivers:].sum(-1, keepdims=True)
        away = states[..., :2, :drivers] - centre
        turned = np.stack([-away[..., 1, :], away[..., 0, :]], axis=-2)
        return controls[..., :1, :] * away + controls[..., 1:, :] * turned

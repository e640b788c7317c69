"""Bodies in space, and the thrusters that steer some of them."""

import numpy as np

from engine.norms import norm_of_array
from engine.systems.n_body import NBody
from training.viewing.drawings.camera import around_bodies
from training.viewing.drawings.drawing import Drawing, Solid, largest
from training.viewing.drawings.ground import net, scale_bar
from training.viewing.drawings.space import faded, far_first, project, unproject
from training.viewing.palette import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION

# Velocity that a drag over a unit length gives.
_PUSH = 1.0
_LONGEST_TRAIL = 40
# With more bodies trails would cover the picture.
_MOST_TRAILS = 200


class BodiesDrawing(Drawing):
    """Bodies as large as the cube root of their mass, those with thrusters in another colour, with short trails.

    Three dimensions are seen from above at an angle, far bodies paler. Pushing changes a body's velocity.

    Args:
        goal: where bodies should be, if anywhere: a number, the radius of a circle about the first body in the plane of
            x and y; or (x, y), or rows x, y, (z) with a column for each.
    """

    def __init__(self, system: NBody, goal: np.ndarray | None = None):
        self.dim, self.thrusters = system.dim, list(system.thrusters)
        self.radius = float(goal) if goal is not None and goal.ndim == 0 else None
        places = goal.reshape(len(goal), -1).T if goal is not None and goal.ndim else np.zeros((0, self.dim))
        self._places = np.pad(places, ((0, 0), (0, self.dim - places.shape[1])))
        masses = np.array(system.masses)
        share = np.cbrt(masses / max(masses.max(), 1e-30))
        small = min(0.014, 0.16 / len(masses) ** 0.5)
        self._radii = small * (1.0 + 2.0 * share)
        self._colours = np.full(len(masses), BLUE, dtype=np.uint32)
        self._colours[masses > 0.1 * masses.max()] = ORANGE
        self._colours[self.thrusters] = VERMILION

    def frame(self, states):
        return around_bodies([self._seen(states).reshape(1, -1, 2)], self._goals(states[0]))(0)

    def cameras(self, episodes):
        camera = around_bodies([self._seen(states) for states in episodes], self._goals(episodes[0][0]))
        return [camera] * len(episodes)

    def draw(self, scene, frame, moment):
        if self.dim == 2:
            net(scene, frame)
        else:
            scale_bar(scene, frame)
        for place in project(self._places):
            scene.goal(frame(place))
        scene.polyline(frame(project(self._circle(moment.state))), 0.007, GREEN, dashes=(3.0, 2.0))
        if len(self._radii) <= _MOST_TRAILS:
            past = moment.states[max(moment.t - _LONGEST_TRAIL, 0) : moment.t + 1, : self.dim]
            for trail in np.moveaxis(past, 2, 0):
                scene.polyline(frame(project(trail)), 0.007, SKY)
        points = moment.state[: self.dim].T
        places, finite = frame(project(points)), np.isfinite(moment.state).all(0)
        colours = self._colours if moment.shades is None else moment.shades
        order = far_first(np.nan_to_num(points))
        order = order[finite[order]]
        pale = faded(colours[order], points[order]) if moment.shades is None else colours[order]
        scene.circles(places[order], self._radii[order], pale)
        if moment.control is not None:
            pushed = places[self.thrusters]
            thrust = project(moment.control.T / largest(moment.controls))
            scene.arrows(pushed, pushed + 0.15 * thrust, 0.01, BLACK)

    def solid(self, moment):
        if self.dim == 2:
            return None
        points, scale = moment.state[:3].T, largest(moment.states[:, :3])
        circle = self._circle(moment.state)
        lines = [np.stack([circle[:-1], circle[1:]], axis=1)]
        if moment.control is not None:
            begin = points[self.thrusters]
            lines.append(np.stack([begin, begin + 0.3 * scale * moment.control.T / largest(moment.controls)], axis=1))
        return Solid(points, 2.0 * scale * self._radii, self._colours, np.concatenate(lines))

    def sizes(self, adjoints):
        return norm_of_array(adjoints, axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        nearest = int(np.linalg.norm(project(pushed[: self.dim].T) - start, axis=1).argmin())
        pushed[self.dim :, nearest] += _PUSH * unproject(drag, self.dim)
        return pushed

    def _seen(self, states: np.ndarray) -> np.ndarray:
        """Places in the picture's plane, [T+1, bodies, 2]."""
        return project(np.moveaxis(states[:, : self.dim], 1, -1))

    def _goals(self, state: np.ndarray) -> np.ndarray:
        return np.concatenate([project(self._places), project(self._circle(state))])

    def _circle(self, state: np.ndarray) -> np.ndarray:
        """Points of the circle that bodies should be on, [points, dim]; none without one."""
        if self.radius is None:
            return np.zeros((0, self.dim))
        angles = np.linspace(0.0, 2.0 * np.pi, 65)
        circle = np.zeros((65, self.dim))
        circle[:, 0], circle[:, 1] = self.radius * np.cos(angles), self.radius * np.sin(angles)
        return circle + state[: self.dim, 0]

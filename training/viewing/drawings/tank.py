"""A fluid in its tank, its jets and where it should be."""

import itertools

import numpy as np

from engine.norms import norm_of_array
from engine.systems.fluid import Fluid
from training.viewing.drawings.camera import boxed
from training.viewing.drawings.drawing import Drawing, Moment, Solid, fastest_of, largest
from training.viewing.drawings.space import faded, far_first, project, unproject
from training.viewing.palette import BLACK, GREY, VERMILION, WHITE, flow
from training.viewing.scene import Frame

# Velocity that a drag over a unit length gives to what is within this distance of its start.
_PUSH, _GRASP = 3.0, 0.15


class TankDrawing(Drawing):
    """A tank with its fluid coloured by speed, jets as circles with arrows for their pushes, a cross at the target.

    Bodies are the jets, then the particles. Three dimensions are seen from above at an angle, far particles paler.
    Pushing moves all the fluid near the start of the drag.

    Args:
        goal: the target, one coordinate for each axis, if there is one.
    """

    def __init__(self, system: Fluid, goal: np.ndarray | None = None):
        self.dim, self.jets, self.size = system.dim, system.jets, np.array(system.size)
        self.goal = None if goal is None else np.asarray(goal, dtype=float)[None]
        self._dot = 0.55 * system.spacing
        corners = np.array(list(itertools.product((0.0, 1.0), repeat=self.dim)))
        edges = [(a, b) for a, b in itertools.combinations(corners, 2) if np.abs(a - b).sum() == 1.0]
        self._edges = np.array(edges) * self.size

    def frame(self, states):
        return Frame.filling(project(self._edges).reshape(-1, 2))

    def cameras(self, episodes):
        places = [project(np.moveaxis(states[:, : self.dim], 1, -1)) for states in episodes]
        return [boxed(places, project(self._edges).reshape(-1, 2))] * len(episodes)

    def fastest(self, episodes):
        return fastest_of([states[:, self.dim :, self.jets :] for states in episodes])

    def draw(self, scene, frame, moment):
        edges = project(self._edges)
        scene.lines(frame(edges[:, 0]), frame(edges[:, 1]), 0.008, GREY)
        points = moment.state[: self.dim].T
        places, finite = frame(project(points)), np.isfinite(moment.state).all(0)
        colours = self._colours(moment) if moment.shades is None else moment.shades
        if moment.shades is None:
            scene.speed_bar(self._fastest(moment))
        order = self.jets + far_first(np.nan_to_num(points[self.jets :]))
        order = order[finite[order]]
        pale = faded(colours[order], points[order]) if moment.shades is None else colours[order]
        scene.circles(places[order], frame.length(self._dot), pale)
        # Jets last: they would drown.
        seen = np.flatnonzero(finite[: self.jets])
        scene.circles(places[seen], 0.018, colours[seen])
        scene.circles(places[seen], 0.008, WHITE)
        if self.goal is not None:
            scene.cross(frame(project(self.goal)), 0.035, 0.02, WHITE)
            scene.cross(frame(project(self.goal)), 0.03, 0.01, BLACK)
        if moment.control is not None:
            pushes = project(moment.control[: self.dim].T / largest(moment.controls[:, : self.dim]))
            scene.arrows(places[: self.jets], places[: self.jets] + 0.15 * pushes, 0.01, BLACK)

    def solid(self, moment):
        if self.dim == 2:
            return None
        points, lines = moment.state[:3].T, [self._edges]
        if self.goal is not None:
            arms = 0.05 * self.size.max() * np.eye(3)
            lines.append(np.stack([self.goal - arms, self.goal + arms], axis=1))
        if moment.control is not None:
            begin = points[: self.jets]
            pushes = moment.control[:3].T / largest(moment.controls[:, :3])
            lines.append(np.stack([begin, begin + 0.3 * self.size.max() * pushes], axis=1))
        radii = np.where(np.arange(len(points)) < self.jets, 2.0 * self._dot, self._dot)
        return Solid(points, radii, self._colours(moment), np.concatenate(lines))

    def sizes(self, adjoints):
        return norm_of_array(adjoints, axis=1)

    def _colours(self, moment: Moment) -> np.ndarray:
        speeds = np.linalg.norm(moment.state[self.dim :, self.jets :], axis=0)
        jets = np.full(self.jets, VERMILION, dtype=np.uint32)
        return np.concatenate([jets, flow(speeds, self._fastest(moment))])

    def _fastest(self, moment: Moment) -> float:
        return moment.fastest or largest(np.linalg.norm(moment.state[self.dim :, self.jets :], axis=0))

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        near = np.linalg.norm(project(pushed[: self.dim].T) - start, axis=1) < _GRASP
        near[: self.jets] = False
        pushed[self.dim :, near] += _PUSH * unproject(drag, self.dim)[:, None]
        return pushed

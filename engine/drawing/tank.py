"""A fluid in its tank, its jets and where it should be."""

import itertools

import numpy as np

from engine.drawing.drawing import Drawing, Solid, largest
from engine.drawing.scene import BLACK, BLUE, GREEN, GREY, VERMILION, Frame
from engine.drawing.space import faded, far_first, project, unproject
from engine.norms import norm_of_array
from engine.systems.fluid import Fluid

# Velocity that a drag over a unit length gives to what is within this distance of its start.
_PUSH, _GRASP = 3.0, 0.15


class TankDrawing(Drawing):
    """A tank with its fluid as dots, jets as circles with arrows for their pushes, a cross at the target.

    Bodies are the jets, then the particles. Three dimensions are seen from above at an angle, far particles paler.
    Pushing moves all the fluid near the start of the drag.

    Args:
        goal: the target, one coordinate for each axis, if there is one.
    """

    def __init__(self, system: Fluid, goal: np.ndarray | None = None):
        self.dim, self.jets, self.size = system.dim, system.jets, np.array(system.size)
        self.goal = None if goal is None else np.asarray(goal, dtype=float)[None]
        self._dot = 0.5 * system.spacing
        self._colours = np.array([VERMILION] * system.jets + [BLUE] * system.particles, dtype=np.uint32)
        corners = np.array(list(itertools.product((0.0, 1.0), repeat=self.dim)))
        edges = [(a, b) for a, b in itertools.combinations(corners, 2) if np.abs(a - b).sum() == 1.0]
        self._edges = np.array(edges) * self.size

    def frame(self, states):
        return Frame.around(project(self._edges).reshape(-1, 2), margin=0.1)

    def draw(self, scene, frame, moment):
        edges = project(self._edges)
        scene.lines(frame(edges[:, 0]), frame(edges[:, 1]), 0.004, GREY)
        points = moment.state[: self.dim].T
        places, finite = frame(project(points)), np.isfinite(moment.state).all(0)
        colours = self._colours if moment.shades is None else moment.shades
        order = self.jets + far_first(np.nan_to_num(points[self.jets :]))
        order = order[finite[order]]
        pale = faded(colours[order], points[order]) if moment.shades is None else colours[order]
        scene.circles(places[order], frame.length(self._dot), pale)
        # Jets last: they would drown.
        scene.circles(places[: self.jets][finite[: self.jets]], 0.01, colours[: self.jets][finite[: self.jets]])
        if self.goal is not None:
            begin = frame(project(self.goal))[0] + np.array([(-0.025, -0.025), (-0.025, 0.025)])
            scene.lines(begin, begin + np.array([(0.05, 0.05), (0.05, -0.05)]), 0.008, GREEN)
        if moment.control is not None:
            pushes = project(moment.control[: self.dim].T / largest(moment.controls[:, : self.dim]))
            scene.arrows(places[: self.jets], places[: self.jets] + 0.15 * pushes, 0.006, BLACK)

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
        return Solid(points, radii, self._colours, np.concatenate(lines))

    def sizes(self, adjoints):
        return norm_of_array(adjoints, axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        near = np.linalg.norm(project(pushed[: self.dim].T) - start, axis=1) < _GRASP
        near[: self.jets] = False
        pushed[self.dim :, near] += _PUSH * unproject(drag, self.dim)[:, None]
        return pushed

"""A one-legged hopper on its ground."""

import numpy as np

from engine.systems.hopper import Hopper
from training.viewing.drawings.camera import following
from training.viewing.drawings.drawing import Drawing, largest
from training.viewing.drawings.ground import rail
from training.viewing.palette import BLACK, BLUE, GREY, VERMILION
from training.viewing.scene import MEDIUM, Frame

# Half the body across and upward, and half of what a picture shows beside it at least, in metres.
_BODY = np.array([0.2, 0.09])
_BESIDE = 0.9
# Where in a picture the ground is, and up to where the body may go.
_FLOOR, _CEILING = 0.17, 0.8
# Velocity that a drag over 1 m gives, per second.
_PUSH = 5.0


class HopperDrawing(Drawing):
    """Body, leg and foot on a ground with ticks, seen by a camera that goes along; the leg's thrust as an arrow.

    Bodies: the body, then the foot. Pushing changes a velocity.

    Args:
        goal: x, or (x, y), where the body should be, if there is such a place.
    """

    def __init__(self, system: Hopper, goal: np.ndarray | None = None):
        self.goal = None if goal is None or np.size(goal) > 2 else np.append(np.ravel(goal), [0.0, 0.0])[:2]

    def frame(self, states):
        x = states[:, [0, 3]][np.isfinite(states[:, [0, 3]])]
        low, high = (float(x.min()), float(x.max())) if len(x) else (0.0, 0.0)
        return self._around((low + high) / 2, max(self._side(states), high - low + 2 * _BESIDE))

    def cameras(self, episodes):
        side = self._side(np.concatenate(episodes))
        places = [following(episode[:, 0], side / 2 - _BESIDE) for episode in episodes]
        return [lambda t, x=x: self._around(float(x[t]), side) for x in places]

    def draw(self, scene, frame, moment):
        rail(scene, frame, 0.0)
        if self.goal is not None:
            scene.goal(frame(self.goal))
        if not np.isfinite(moment.state).all():
            scene.text("the state is not finite", (0.2, 0.6), MEDIUM, VERMILION)
            return
        body, foot, pitch = moment.state[:2], moment.state[3:5], moment.state[2]
        colours = (BLUE, VERMILION) if moment.shades is None else [int(shade) for shade in moment.shades]
        hip, tip = frame(body), frame(foot)
        scene.lines(hip, tip, max(frame.length(0.05), 0.01), GREY)
        along = np.array([np.cos(pitch), np.sin(pitch)])
        turn = np.stack([along, [-along[1], along[0]]])
        corners = frame(body + (_BODY * [(-1, -1), (1, -1), (1, 1), (-1, 1)]) @ turn)
        scene.triangles(corners[[0, 0]], corners[[1, 2]], corners[[2, 3]], colours[0])
        scene.circles(hip, max(frame.length(0.04), 0.008), BLACK)
        scene.circles(tip, max(frame.length(0.05), 0.012), colours[1])
        if moment.control is not None:
            thrust = np.tanh(moment.control[1]) / largest(np.tanh(moment.controls[:, 1]))
            away = (tip - hip) / max(float(np.linalg.norm(tip - hip)), 1e-9)
            scene.arrows(hip, hip + 0.15 * thrust * away, 0.014, BLACK)

    def sizes(self, adjoints):
        of_body, of_foot = adjoints[:, [0, 1, 2, 5, 6, 7]], adjoints[:, [3, 4, 8, 9]]
        return np.stack([np.linalg.norm(of_body, axis=1), np.linalg.norm(of_foot, axis=1)], axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        at_body = np.linalg.norm(pushed[:2] - start) <= np.linalg.norm(pushed[3:5] - start)
        pushed[5:7] += _PUSH * drag * at_body
        pushed[8:10] += _PUSH * drag * (not at_body)
        return pushed

    def _side(self, states: np.ndarray) -> float:
        """Metres of a picture in which every height is inside."""
        heights = states[:, [1, 4]][np.isfinite(states[:, [1, 4]])]
        highest = float(heights.max()) if len(heights) else 0.0
        return max((highest + 0.3) / (_CEILING - _FLOOR), 2.2 * _BESIDE)

    def _around(self, x: float, side: float) -> Frame:
        return Frame((x, (0.5 - _FLOOR) * side), (side, side))

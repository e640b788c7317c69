"""A ball that is thrown over a wall."""

import numpy as np

from engine.systems.ball_wall import BallWall
from training.viewing.drawings.drawing import Drawing, largest
from training.viewing.drawings.ground import rail
from training.viewing.palette import BLACK, BLUE, GREY, SKY, VERMILION
from training.viewing.scene import MEDIUM, Frame

# Where in a picture the ground is, and what is shown on each side of what is to be seen, in metres.
_FLOOR, _BESIDE = 0.3, 0.4
# Velocity that a drag over 1 m gives, per second.
_PUSH = 2.0


class BallDrawing(Drawing):
    """The ball with its way so far, the wall, the ground and where it is to land; the launch as an arrow.

    Bodies: the ball. Pushing changes its velocity.

    Args:
        goal: x, or (x, y), where it should land, if there is such a place.
    """

    def __init__(self, system: BallWall, goal: np.ndarray | None = None):
        self.wall, self.height, self.launch = system.wall, system.height, np.array(system.launch)
        self.goal = None if goal is None or np.size(goal) > 2 else np.append(np.ravel(goal), [0.0, 0.0])[:2]

    def frame(self, states):
        places = states[:, :2][np.isfinite(states[:, :2]).all(1)]
        known = [places, [(self.wall, self.height), (0.0, 0.0)], np.zeros((0, 2)) if self.goal is None else [self.goal]]
        low, high = np.concatenate(known).min(0), np.concatenate(known).max(0)
        side = max(high[0] - low[0] + 2 * _BESIDE, (high[1] + _BESIDE) / (1.0 - _FLOOR))
        return Frame(((low[0] + high[0]) / 2, (0.5 - _FLOOR) * side), (side, side))

    def draw(self, scene, frame, moment):
        rail(scene, frame, 0.0)
        scene.lines(frame((self.wall, 0.0)), frame((self.wall, self.height)), max(frame.length(0.06), 0.012), GREY)
        if self.goal is not None:
            scene.goal(frame(self.goal))
        if not np.isfinite(moment.state).all():
            scene.text("the state is not finite", (0.2, 0.6), MEDIUM, VERMILION)
            return
        scene.polyline(frame(moment.states[: moment.t + 1, :2]), 0.007, SKY)
        ball = frame(moment.state[:2])
        scene.circles(ball, 0.022, BLUE if moment.shades is None else int(moment.shades[0]))
        if moment.control is not None and moment.state[4] < 0.5:
            launch = self.launch + moment.control
            scene.arrows(ball, ball + 0.15 * launch / largest(launch), 0.012, BLACK)

    def sizes(self, adjoints):
        return np.linalg.norm(adjoints[:, :4], axis=1)[:, None]

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        pushed[2:4] += _PUSH * drag
        return pushed

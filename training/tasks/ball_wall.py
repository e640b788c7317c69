"""Throwing a ball over a wall, where first-order gradients are empty or biased."""

from dataclasses import dataclass
from typing import Any, ClassVar

from engine.checks import not_negative, whole
from engine.noise import Noise
from engine.systems.ball_wall import BallWall
from policies import MLP
from training.objectives import Objective
from training.starts import policy_for, uniform_states
from training.task import Task

_DISTANCE = 4.0
# The launch that a control of 0 means, low enough to meet the wall, in m/s.
_LAUNCH = (4.0, 3.0)


class Landing(Objective):
    """(x_T / x* - 1)², with x* = 4 m, beyond the wall."""

    goal = _DISTANCE

    def final(self, state):
        return (state[..., 0] / _DISTANCE - 1.0).square()


@dataclass(frozen=True)
class BallWallOptions:
    """Throw a ball over a hard wall; those that it stops tell nothing of how to clear it. See `BallWall`."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("noise", (0.0, 0.3, 1.0))

    noise: float = 0.3
    """Standard deviation of the launch velocity, m/s."""
    horizon: int = 60
    """Steps of 0.02 s."""

    def build(self) -> Task:
        whole("a horizon of at least 1 step", self.horizon)
        not_negative("a noise of at least 0", self.noise)
        system = BallWall(launch=_LAUNCH)
        sample = uniform_states((-0.2, 0.0, 0.0, 0.0, 0.0), (0.2, 0.0, 0.0, 0.0, 0.0))
        noise = Noise(control=self.noise) if self.noise else None
        make = policy_for(system, MLP, hidden=(32,), zero_last=True)
        return Task("ball-wall", system, Landing(), sample, self.horizon, make, success=0.01, noise=noise,
                    control_bounds=(-3.0, 3.0))  # fmt: skip

"""Bringing a chaotic flow to rest, or to a steady state, and holding it there."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from engine.checks import not_negative, whole
from engine.held import Held
from engine.observation import Observation
from engine.systems.kuramoto_sivashinsky import KuramotoSivashinsky
from policies import MLP
from training.objectives import Objective, after_the_start, constant
from training.starts import policy_for
from training.task import Task

_SENSORS = 8
# Of physics for a step of the controller, which is 0.5 long.
_HELD = 5


class Hold(Objective):
    """How far the flow is from a steady state u* on average, and what the actuators take.

        L = 1/T Σ_{t=1..T} mean_x (u_t - u*)² + rc/T Σ_{t<T} mean(a_t²)

    Args:
        target: u* [N]; horizon: T; regularisation: rc.
    """

    def __init__(self, target: np.ndarray, horizon: int, regularisation: float):
        self.goal = torch.from_numpy(np.ascontiguousarray(target))
        self._values = tuple(self.goal.tolist())
        self.horizon, self.regularisation = horizon, regularisation

    def running(self, states, controls, steps):
        effort = self.regularisation / self.horizon * controls.square().mean(-1)
        return after_the_start(steps, self.final(states)) + effort

    def final(self, state):
        return (state - constant(self._values, state)).square().mean(-1) / self.horizon


@dataclass(frozen=True)
class KuramotoSivashinskyOptions:
    """Bring a chaotic flow to rest or to a steady state, by 4 actuators that see it through 8 sensors.

    Errors grow by e in some 22 units of time, 44 steps: horizons of 20, 44 and 88 steps are below, at and above that.
    Length, points, actuators and sensors are those of Bucci et al. (Proc. R. Soc. A 2019).
    """

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("horizon", (20, 44, 88))

    horizon: int = 44
    """Steps of the controller, each of 0.5 units of time."""
    target: int = 0
    """Waves of the steady state to hold: 0 for rest, or 1, 2 or 3 for E1, E2 or E3."""
    regularisation: float = 0.01
    """Weight rc of the mean squared amplitude."""

    def build(self) -> Task:
        whole("a horizon of at least 1 step", self.horizon)
        not_negative("a regularisation of at least 0", self.regularisation)
        flow = KuramotoSivashinsky()
        objective = Hold(flow.equilibrium(self.target), self.horizon, self.regularisation)
        observation = Observation.components(range(0, flow.points, flow.points // _SENSORS))
        system = Held(flow, _HELD)
        make = policy_for(system, MLP, observation, hidden=(64, 64), zero_last=True)
        return Task("kuramoto-sivashinsky", system, objective, flow.attractor, self.horizon, make,
                    observation=observation, control_bounds=(-1.0, 1.0))  # fmt: skip

"""Driving a herd to a target with drivers that it flees from."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from engine import SettingError
from engine.systems import Guidance
from policies import MLP
from training.objective import Objective
from training.task import Task


class Herd(Objective):
    """Mean over steps 1..T, evaders and x/y of (x_e - target)², plus rc times the mean of c² over steps and controls.

    Args:
        drivers: how many of the particles, the first ones, are drivers.
        horizon: T.
        regularisation: rc.
        target: (x, y) where the evaders should be.
    """

    def __init__(self, drivers: int, horizon: int, regularisation: float, target: tuple[float, float]):
        self.drivers, self.horizon, self.regularisation, self.target = drivers, horizon, regularisation, target

    def running(self, states, controls, steps):
        # The mean over states starts at step 1: the first state is given.
        counted = (steps > 0).to(states.dtype).view(-1, 1)
        effort = controls.flatten(2).square().mean(2)
        return counted * self.final(states) + self.regularisation / self.horizon * effort

    def final(self, state):
        away = state[..., :2, self.drivers :] - state.new_tensor(self.target).view(2, 1)
        return away.square().flatten(-2).mean(-1) / self.horizon


@dataclass(frozen=True)
class GuidanceOptions:
    """Drive a herd of evaders to a target by repulsion; Schnell and Thuerey (ICLR 2024), Sec. 3.2."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("regularisation", (1.0, 0.1, 0.01, 0.001))

    drivers: int = 2
    """Number of drivers, which are controlled."""
    evaders: int = 4
    """Number of evaders, which flee from the drivers."""
    horizon: int = 60
    """Steps."""
    dt: float = 4 / 60
    """Time step."""
    regularisation: float = 0.1
    """Weight rc of the mean squared control; the paper's difficulties are 1, 0.1, 0.01 and 0.001."""
    target_x: float = 0.0
    """Where to drive the evaders: x."""
    target_y: float = 0.0
    """Where to drive the evaders: y."""
    mean_centre: bool = False
    """Steer about the mean of the evaders' positions instead of their sum."""
    reversed_flocking: bool = False
    """Let evaders repel each other when near and attract when far, the reverse of the paper's scripts."""

    def build(self) -> Task:
        if not self.regularisation >= 0:
            raise SettingError(f"Expected a regularisation of at least 0, got {self.regularisation}.")
        system = Guidance(self.drivers, self.evaders, self.dt, self.mean_centre, self.reversed_flocking)
        objective = Herd(self.drivers, self.horizon, self.regularisation, (self.target_x, self.target_y))
        policy = partial(MLP, system.state_shape, system.control_shape, (100, 100), True)
        make = lambda members, dtype, device: policy(members=members, dtype=dtype, device=device)  # noqa: E731
        sample = partial(_scatter, self.drivers, self.evaders)
        return Task("guidance", system, objective, sample, self.horizon, make)


def _scatter(drivers: int, evaders: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """At rest, drivers in the annulus of radius 3 to 4, evaders within ±0.5 of a point in the annulus 1 to 2."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    def annulus(number: int, inner: float) -> torch.Tensor:
        radius, angle = inner + uniform(1, number), 2.0 * math.pi * uniform(1, number)
        return radius * torch.cat([angle.cos(), angle.sin()], dim=1)

    states = torch.zeros(count, 4, drivers + evaders, dtype=torch.float64)
    states[:, :2, :drivers] = annulus(drivers, 3.0)
    states[:, :2, drivers:] = annulus(1, 1.0) + uniform(2, evaders) - 0.5
    return states

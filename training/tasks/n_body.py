"""Bringing satellites to a circular orbit about a star, among bodies that all attract each other."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from engine.checks import not_negative, positive, whole
from engine.systems import NBody
from policies import MLP
from training.objectives import Objective
from training.starts import policy_for
from training.task import Task

SOFTENING = 0.1
# Below the square of any distance that matters; gives |r| the derivative 0 at r = 0.
_TINY = 1e-12


class Orbit(Objective):
    """How far satellites are at the end from circling the star at radius R, plus what they thrust.

        ℓ_T = mean_s [ (|r| / R - 1)² + |v - V t|² / V² + (z / R)² + (v_z / V)² ],   ℓ_t = rc mean(u²) / T

    r and v are seen from the star, |r| and t = ẑ × r / |r| are those of the projection on the plane, z and v_z are 0
    in 2 dimensions, V is the speed on the circle.

    Args:
        dim: 2 or 3.
        radius: R.
        speed: V.
        horizon: T.
        regularisation: rc.
    """

    positive_parameters = ("target_radius",)

    def __init__(self, dim: int, radius: Any, speed: Any, horizon: int, regularisation: float):
        self.dim, self.radius, self.speed = dim, radius, speed
        self.horizon, self.regularisation = horizon, regularisation
        self.goal = radius
        self.parameters = {"target_radius": radius}

    def given(self, parameters):
        """Orbits of the samples' own radii, with R and V as [..., 1]."""
        if "target_radius" not in parameters:
            return self
        radius = parameters["target_radius"].unsqueeze(-1)
        return Orbit(self.dim, radius, _circular_speed(radius), self.horizon, self.regularisation)

    def running(self, states, controls, steps):
        return self.regularisation / self.horizon * controls.flatten(2).square().mean(2)

    def final(self, state):
        seen = state[..., 1:] - state[..., :1]
        position, velocity = seen[..., :2, :], seen[..., self.dim : self.dim + 2, :]
        distance = (position.square().sum(-2, keepdim=True) + _TINY).sqrt()
        along = torch.stack([-position[..., 1, :], position[..., 0, :]], dim=-2) / distance
        cost = (distance.squeeze(-2) / self.radius - 1.0).square()
        speed = self.speed.unsqueeze(-2) if isinstance(self.speed, torch.Tensor) else self.speed
        cost = cost + (velocity / speed - along).square().sum(-2)
        if self.dim == 3:
            cost = cost + (seen[..., 2, :] / self.radius).square() + (seen[..., 5, :] / self.speed).square()
        return cost.mean(-1)


@dataclass(frozen=True)
class NBodyOptions:
    """Bring satellites from random circular orbits to one orbit about a star, by thrust; all bodies attract."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("satellites", (1, 2, 4, 8))

    satellites: int = 2
    """Number of satellites, each with thrusters along every axis."""
    satellite_mass: float = 0.01
    """Mass of each satellite; the star's is 1."""
    dim: int = 2
    """Dimensions, 2 or 3; in 3 the first orbits are tilted and the last is to lie in the plane."""
    horizon: int = 100
    """Steps."""
    dt: float = 0.04
    """Time step; a year at radius 1 is 2π."""
    radius: float = 1.5
    """Radius of the orbit to reach; the first orbits are of 0.5 to 0.8 times that."""
    regularisation: float = 0.01
    """Weight rc of the mean squared thrust."""

    def build(self) -> Task:
        whole("n-body with at least 1 satellite", self.satellites)
        whole("a horizon of at least 1 step", self.horizon)
        positive("a radius above 0", self.radius)
        not_negative("a regularisation of at least 0", self.regularisation)
        masses = (1.0, *[self.satellite_mass] * self.satellites)
        system = NBody(masses, range(1, self.satellites + 1), self.dim, self.dt, softening=SOFTENING)
        speed = float(_circular_speed(torch.tensor(self.radius, dtype=torch.float64)))
        objective = Orbit(self.dim, self.radius, speed, self.horizon, self.regularisation)
        make = policy_for(system, MLP, hidden=(100, 100), zero_last=True)
        sample = partial(_in_orbit, self.satellites, self.dim, self.radius)
        return Task("n-body", system, objective, sample, self.horizon, make, success=0.05)


def _circular_speed(radius: torch.Tensor) -> torch.Tensor:
    """Speed on a circle about a star of mass 1 that is alone, with G = 1."""
    return radius / (radius.square() + SOFTENING**2) ** 0.75


def _in_orbit(satellites: int, dim: int, radius: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """A star at rest and satellites anywhere on circles about it, in space tilted by up to 0.3 about the x axis."""
    draw = torch.rand(3, count, satellites, generator=generator, dtype=torch.float64)
    circle, angle, tilt = radius * (0.5 + 0.3 * draw[0]), 2.0 * math.pi * draw[1], 0.6 * (draw[2] - 0.5)
    speed = _circular_speed(circle)
    states = torch.zeros(count, 2 * dim, 1 + satellites, dtype=torch.float64)
    for row, along, across in ((0, circle * angle.cos(), circle * angle.sin()),
                               (dim, -speed * angle.sin(), speed * angle.cos())):  # fmt: skip
        states[:, row, 1:] = along
        states[:, row + 1, 1:] = across * tilt.cos() if dim == 3 else across
        if dim == 3:
            states[:, row + 2, 1:] = across * tilt.sin()
    return states

"""Moving a fluid to a target with a few jets."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from engine.checks import finite, not_negative, one_of, positive, whole
from engine.held import Held
from engine.systems.fluid import Fluid, longest_dt
from policies import Moments
from training.objectives import Aimed
from training.starts import policy_for
from training.task import Task

TANKS = {2: (2.0, 1.0), 3: (2.0, 0.5, 1.0)}
# How much of the tank is full.
FILLING = 0.3


class Gathered(Aimed):
    """How far a fluid is from a target at the end, plus what its jets push.

        ℓ_T = mean_i max(0, |x_i - x*| - ρ)² / L²,   ℓ_t = rc mean(u²) / T

    Args:
        jets: how many columns of the state are jets.
        goal: x*, one coordinate for each axis.
        radius: ρ, of the ball that counts as the target.
        length: L, to which distances are compared.
        horizon: T.
        regularisation: rc.
    """

    def __init__(
        self,
        jets: int,
        goal: tuple[float, ...],
        radius: float,
        length: float,
        horizon: int,
        regularisation: float,
    ):
        super().__init__(goal)
        self.jets, self.radius, self.length = jets, radius, length
        self.horizon, self.regularisation = horizon, regularisation

    def running(self, states, controls, steps):
        return self.regularisation / self.horizon * controls.flatten(2).square().mean(2)

    def final(self, state):
        away = state[..., : len(self.goal), self.jets :] - self.target(state)
        outside = ((away.square().sum(-2) + 1e-12).sqrt() - self.radius).clamp(min=0.0)
        return (outside / self.length).square().mean(-1)


@dataclass(frozen=True)
class FluidOptions:
    """Gather a fluid in one corner of its tank with a few jets at the bottom; it starts as a column anywhere."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("jets", (8, 4, 2, 1))

    particles: int = 5000
    """Number of particles; more make the same fluid finer."""
    jets: int = 4
    """Number of jets, in a row along the bottom, which are controlled."""
    dim: int = 2
    """Dimensions, 2 or 3."""
    horizon: int = 40
    """Steps of the controller; each is as many steps of physics as stability asks for."""
    duration: float = 0.5
    """Time from start to end; a body falls through the tank's height in 1.4."""
    sound_speed: float = 5.0
    """Speed of sound; flows reach about 2 without control and 7 with trained jets, where 10 is better."""
    viscosity: float = 0.002
    """Kinematic viscosity."""
    gravity: float = 1.0
    """Acceleration downwards."""
    jet_radius: float = 0.4
    """Radius of what a jet moves."""
    jet_strength: float = 15.0
    """Acceleration in the middle of a jet of push 1."""
    safety: float = 1.0
    """How many times shorter a step of physics is than sound at rest asks for; 2 where jets may drive the flow beyond
    the speed of sound."""
    steered: bool = False
    """Let the jets be moved too."""
    regularisation: float = 0.001
    """Weight rc of the mean squared control."""

    def build(self) -> Task:
        for name, value in (("particle", self.particles), ("jet", self.jets), ("step of horizon", self.horizon)):
            whole(f"a fluid task with at least 1 {name}", value)
        one_of("a fluid in 2 or 3 dimensions", self.dim, TANKS.keys())
        for name, value in (("duration", self.duration), ("sound speed", self.sound_speed)):
            positive(f"a finite {name} above 0", value)
        for name, value in (("viscosity", self.viscosity), ("gravity", self.gravity)):
            not_negative(f"a finite {name} of at least 0", value)
        not_negative("a regularisation of at least 0", self.regularisation)
        finite("a safety of at least 1", self.safety, lambda number: number >= 1)
        size = TANKS[self.dim]
        spacing = (FILLING * math.prod(size) / self.particles) ** (1 / self.dim)
        step = self.duration / self.horizon
        longest = longest_dt(spacing, self.sound_speed, self.viscosity, self.gravity)
        held = math.ceil(self.safety * step / longest)
        fluid = Fluid(
            self.particles,
            self.jets,
            size,
            spacing,
            step / held,
            self.sound_speed,
            self.viscosity,
            self.gravity,
            self.jet_radius,
            self.jet_strength,
            self.steered,
        )
        target = (0.75 * size[0], *(0.5 * length for length in size[1:-1]), 0.3 * size[-1])
        objective = Gathered(self.jets, target, 0.3, 0.5 * size[0], self.horizon, self.regularisation)
        make = policy_for(fluid, Moments, zero_last=True)
        sample = partial(_column, self.particles, self.jets, size, spacing)
        return Task("fluid", Held(fluid, held), objective, sample, self.horizon, make)


def _column(
    particles: int, jets: int, size: tuple[float, ...], spacing: float, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Jets in a row along the bottom and a column of fluid at rest, of random width and place along the first axis."""
    dim = len(size)
    draw = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    noise = torch.rand(count, dim, particles, generator=generator, dtype=torch.float64) - 0.5
    states = torch.zeros(count, 2 * dim, jets + particles, dtype=torch.float64)
    states[:, 0, :jets] = size[0] * (torch.arange(jets, dtype=torch.float64) + 0.5) / jets
    for axis in range(1, dim):
        states[:, axis, :jets] = (0.25 if axis == dim - 1 else 0.5) * size[axis]
    index = torch.arange(particles)
    across = [max(1, int(length / spacing)) for length in size[1:-1]]
    for b in range(count):
        counts = [max(1, round(float(0.35 + 0.1 * draw[b, 0]) * size[0] / spacing)), *across]
        place, rest = [], index
        for columns in counts:
            place.append(rest % columns)
            rest = rest // columns
        lattice = torch.stack([*place, rest]).to(torch.float64)
        states[b, :dim, jets:] = spacing * (lattice + 0.5 + 0.1 * noise[b])
        states[b, 0, jets:] += draw[b, 1] * (size[0] - spacing * counts[0])
    return states

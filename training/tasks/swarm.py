"""Driving a swarm of thousands to a target with a few drivers that it flees from."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from engine.checks import finite, not_negative, positive, whole
from engine.systems import Swarm
from policies import Moments
from training.starts import policy_for
from training.task import Task
from training.tasks.herd import Herd, scattered


@dataclass(frozen=True)
class SwarmOptions:
    """Drive thousands of evaders to a target by repulsion; guidance at scale, with a policy that sees the crowd.

    The target lies outside of the ring in which the drivers start, so they have to come together behind the swarm.
    Flight is felt at any distance, as in guidance. Flocking keeps evaders that are nearer than `radius` apart; with
    flocking and flight shared, a swarm spreads and moves alike whatever its numbers. The policy sees the crowd's mean
    and spread alone, which cost no sorting.
    """

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("evaders", (125, 500, 2000, 8000))

    drivers: int = 8
    """Number of drivers, which are controlled."""
    evaders: int = 2000
    """Number of evaders, which flee from the drivers."""
    horizon: int = 50
    """Steps."""
    dt: float = 0.1
    """Time step."""
    regularisation: float = 0.01
    """Weight rc of the mean squared control."""
    target_x: float = 5.0
    """Where to drive the evaders: x."""
    target_y: float = 0.0
    """Where to drive the evaders: y."""
    half_width: float = 1.0
    """Evaders start within this of a common point, in x and in y."""
    radius: float = 0.1
    """How far evaders feel each other, found by cells: twice what 2000 start apart; 0 for any, by all pairs."""
    flocking: float = 400.0
    """Weight of flocking, shared among the evaders: for 2000 of them 0.2, as in guidance."""
    flight: float = 24.0
    """Weight of flight, shared among the drivers: for 8 of them 3, where guidance has 15 for each of 2."""
    mean_centre: bool = True
    """Steer about the mean of the evaders' positions instead of their sum."""
    reversed_flocking: bool = True
    """Let evaders repel each other when near and attract when far, as flocks do, instead of the reverse."""

    def build(self) -> Task:
        whole("a swarm with at least 1 driver", self.drivers)
        whole("a swarm with at least 1 evader", self.evaders)
        whole("a horizon of at least 1 step", self.horizon)
        not_negative("a regularisation of at least 0", self.regularisation)
        not_negative("a radius of at least 0", self.radius)
        positive("a half width above 0", self.half_width)
        for name in ("target_x", "target_y", "flocking", "flight"):
            finite(f"a finite {name}", getattr(self, name))
        system = Swarm(
            self.drivers,
            self.evaders,
            self.dt,
            self.radius or None,
            flocking=self.flocking / self.evaders,
            flight=self.flight / self.drivers,
            mean_centre=self.mean_centre,
            reversed_flocking=self.reversed_flocking,
        )
        objective = Herd(self.drivers, self.horizon, self.regularisation, (self.target_x, self.target_y))
        make = policy_for(system, Moments, quantiles=(), zero_last=True)
        sample = partial(scattered, self.drivers, self.evaders, half_width=self.half_width)
        return Task("swarm", system, objective, sample, self.horizon, make)

"""Driving a swarm of thousands to a target with a few drivers that it flees from."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from engine import SettingError
from engine.systems import Swarm
from policies import Moments
from training.task import Task
from training.tasks.guidance import Herd, _scatter


@dataclass(frozen=True)
class SwarmOptions:
    """Drive thousands of evaders to a target by repulsion; guidance at scale, with a policy that sees the crowd."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("evaders", (125, 500, 2000, 8000))

    drivers: int = 8
    """Number of drivers, which are controlled."""
    evaders: int = 2000
    """Number of evaders, which flee from the drivers."""
    horizon: int = 60
    """Steps."""
    dt: float = 4 / 60
    """Time step."""
    regularisation: float = 0.1
    """Weight rc of the mean squared control."""
    target_x: float = 0.0
    """Where to drive the evaders: x."""
    target_y: float = 0.0
    """Where to drive the evaders: y."""
    radius: float = 0.0
    """How far evaders feel each other, found by cells; 0 for any distance, by all pairs."""
    flocking: float = 0.8
    """Weight of flocking, shared among the evaders; 0.8 is that of a herd of four in the paper."""
    mean_centre: bool = True
    """Steer about the mean of the evaders' positions instead of their sum."""
    reversed_flocking: bool = True
    """Let evaders repel each other when near and attract when far, as flocks do, instead of the reverse."""

    def build(self) -> Task:
        if not self.regularisation >= 0:
            raise SettingError(f"Expected a regularisation of at least 0, got {self.regularisation}.")
        if not self.radius >= 0:
            raise SettingError(f"Expected a radius of at least 0, got {self.radius}.")
        if not isinstance(self.evaders, int) or self.evaders < 1:
            raise SettingError(f"Expected a swarm with at least 1 evader, got {self.evaders!r}.")
        system = Swarm(
            self.drivers,
            self.evaders,
            self.dt,
            self.radius or None,
            flocking=self.flocking / self.evaders,
            mean_centre=self.mean_centre,
            reversed_flocking=self.reversed_flocking,
        )
        objective = Herd(self.drivers, self.horizon, self.regularisation, (self.target_x, self.target_y))
        policy = partial(Moments, system.state_shape, system.control_shape, zero_last=True)
        make = lambda members, dtype, device: policy(members=members, dtype=dtype, device=device)  # noqa: E731
        sample = partial(_scatter, self.drivers, self.evaders)
        return Task("swarm", system, objective, sample, self.horizon, make)

"""Driving a herd to a target with drivers that it flees from."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from engine.checks import finite, not_negative, whole
from engine.systems import Guidance
from policies import MLP
from training.starts import policy_for
from training.task import Task
from training.tasks.herd import Herd, scattered


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
        not_negative("a regularisation of at least 0", self.regularisation)
        whole("a horizon of at least 1 step", self.horizon)
        for name in ("target_x", "target_y"):
            finite(f"a finite {name}", getattr(self, name))
        system = Guidance(self.drivers, self.evaders, self.dt, self.mean_centre, self.reversed_flocking)
        objective = Herd(self.drivers, self.horizon, self.regularisation, (self.target_x, self.target_y))
        make = policy_for(system, MLP, hidden=(100, 100), zero_last=True)
        sample = partial(scattered, self.drivers, self.evaders)
        return Task("guidance", system, objective, sample, self.horizon, make)

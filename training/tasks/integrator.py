"""The four-step toy problem of Fig. 1 of Schnell and Thuerey (ICLR 2024)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from engine import Integrator
from engine.checks import finite
from policies import Polynomial
from training.objectives import Objective
from training.task import Task


class Reach(Objective):
    """½ |x_T - target|²."""

    def __init__(self, target: float):
        self.goal = target

    def final(self, state):
        return 0.5 * (state - self.goal).square().sum(1)


@dataclass(frozen=True)
class IntegratorOptions:
    """Move a point from -0.3 to a target by u = θ₁x² + θ₂x, added to the state at every step."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("horizon", (4,))

    horizon: int = 4
    """Steps."""
    target: float = 2.0
    """Where to end."""

    def build(self) -> Task:
        finite("a finite target", self.target)

        def sample(count: int, generator: torch.Generator) -> torch.Tensor:
            return torch.full((count, 1), -0.3, dtype=torch.float64)

        make = partial(Polynomial, (1,))
        return Task("integrator", Integrator(), Reach(self.target), sample, self.horizon, make, success=1e-3)

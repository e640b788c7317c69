"""Swinging up poles on a cart."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from engine import CartPole
from policies import MLP
from training.objectives import Objective
from training.starts import policy_for
from training.task import Task


class Upright(Objective):
    """1 - mean_i cosθ_i at the final step: 0 with every pole upright, 2 with every pole hanging."""

    def __init__(self, poles: int):
        self.poles = poles

    def final(self, state):
        return 1.0 - torch.cos(state[:, 2 : 2 + self.poles]).mean(1)


@dataclass(frozen=True)
class CartPoleOptions:
    """Swing up poles that hang from one cart, by one force; Schnell and Thuerey (ICLR 2024), Sec. 3.1."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("poles", (1, 2, 3, 4))

    poles: int = 1
    """Number of poles on the cart."""
    horizon: int = 100
    """Steps."""
    dt: float = 0.01
    """Time step in seconds."""

    def build(self) -> Task:
        system = CartPole(self.poles, self.dt)

        def sample(count: int, generator: torch.Generator) -> torch.Tensor:
            states = 2.0 * torch.rand(count, 2 + 2 * self.poles, generator=generator, dtype=torch.float64) - 1.0
            states[:, 2 : 2 + self.poles] = math.pi + states[:, 2 : 2 + self.poles] * math.pi / 6
            return states

        make = policy_for(system, MLP, hidden=(100, 100), zero_last=True)
        return Task("cart-pole", system, Upright(self.poles), sample, self.horizon, make, success=0.05,
                    control_bounds=(-20.0, 20.0))  # fmt: skip

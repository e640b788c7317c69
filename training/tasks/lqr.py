"""Linear dynamics with quadratic costs, where the variants' fixed points are known."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from engine import LinearSystem
from policies import Linear
from training.objectives import Quadratic
from training.starts import policy_for
from training.task import Task

_A, _B = ((1.0, 0.1), (-0.02, 0.97)), ((0.0,), (0.1,))
_Q, _R = (1.0, 0.1), 0.05


@dataclass(frozen=True)
class LQROptions:
    """A lightly damped oscillator, regulated by linear state feedback to minimise a quadratic cost."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("horizon", (20, 200))

    horizon: int = 200
    """Steps."""

    def build(self) -> Task:
        system = LinearSystem(_A, _B)

        def sample(count: int, generator: torch.Generator) -> torch.Tensor:
            return torch.randn(count, 2, generator=generator, dtype=torch.float64)

        make = policy_for(system, Linear, bias=False, zero_last=True)
        return Task("lqr", system, Quadratic(_Q, _R), sample, self.horizon, make)

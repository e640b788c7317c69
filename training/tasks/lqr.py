"""Linear dynamics with quadratic costs, where the variants' fixed points are known."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from engine import LinearSystem
from policies import Linear, Policy
from training.objectives import Quadratic
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

        def policy(members: int, dtype: torch.dtype, device: torch.device) -> Policy:
            return Linear((2,), (1,), bias=False, zero_last=True, members=members, dtype=dtype, device=device)

        return Task("lqr", system, Quadratic(_Q, _R), sample, self.horizon, policy)

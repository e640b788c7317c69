"""Steering a particle in a box from its lowest states to a higher one."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from engine import QuantumBox
from engine.checks import whole
from policies import Convolutional
from training.objectives import Objective, after_the_start, constant
from training.starts import policy_for
from training.task import Task


class Transfer(Objective):
    """Σ_{t=1..T} (1 - |⟨ψ_t|φ_n⟩|²), with φ_n the target eigenstate.

    Args:
        system: the box.
        target: n, from 1.
    """

    def __init__(self, system: QuantumBox, target: int):
        self.target = target
        with torch.inference_mode(False):
            self.goal = system.eigenstate(target)
        self._wave = tuple(self.goal.tolist())

    def running(self, states, controls, steps):
        return after_the_start(steps, self.final(states))

    def final(self, state):
        return 1.0 - (state @ constant(self._wave, state)).square().sum(-1)


@dataclass(frozen=True)
class QuantumOptions:
    """Bring a particle in a box to an eigenstate by a field; Schnell and Thuerey (ICLR 2024), Sec. 3.3."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("target", (3, 4, 5))

    target: int = 3
    """The eigenstate n, from 1; starts are superpositions of 1 and 2."""
    points: int = 32
    """Interior points of the grid."""
    horizon: int = 128
    """Steps."""
    dt: float = 0.0625
    """Time step."""

    def build(self) -> Task:
        system = QuantumBox(self.points, self.dt)
        whole("a horizon of at least 1 step", self.horizon)
        objective = Transfer(system, self.target)
        low = torch.stack([system.eigenstate(1), system.eigenstate(2)])

        def sample(count: int, generator: torch.Generator) -> torch.Tensor:
            weights = torch.randn(count, 2, generator=generator, dtype=torch.float64)
            phases = 2.0 * math.pi * torch.rand(count, 2, generator=generator, dtype=torch.float64)
            weights = weights / weights.norm(dim=1, keepdim=True)
            return torch.stack([(weights * phases.cos()) @ low, (weights * phases.sin()) @ low], 1)

        return Task("quantum", system, objective, sample, self.horizon, policy_for(system, Convolutional))

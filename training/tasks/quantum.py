"""Steering a particle in a box from its lowest states to a higher one."""

import copy
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

    Where n varies between samples, as `target`, it may lie between two eigenstates: φ_n is sin(π n j / (N + 1)), of
    norm 1.

    Args:
        system: the box.
        target: n, from 1.
    """

    positive_parameters = ("target",)

    def __init__(self, system: QuantumBox, target: int):
        self.target = target
        with torch.inference_mode(False):
            self.goal = system.eigenstate(target)
        self._wave = tuple(self.goal.tolist())
        self.parameters = {"target": float(target)}

    def given(self, parameters):
        if "target" not in parameters:
            return self
        other = copy.copy(self)
        target = parameters["target"].unsqueeze(-1)
        points = torch.arange(1, len(self.goal) + 1, dtype=target.dtype, device=target.device)
        other.goal = torch.nn.functional.normalize(torch.sin(math.pi / (len(points) + 1) * target * points), dim=-1)
        return other

    def running(self, states, controls, steps):
        return after_the_start(steps, self.final(states))

    def final(self, state):
        if self.goal.dim() == 1:
            overlap = state @ constant(self._wave, state)
        else:
            overlap = (state * self.goal.to(state).unsqueeze(-2)).sum(-1)
        return 1.0 - overlap.square().sum(-1)


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

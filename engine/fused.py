"""What a system is handed to sweep a segment in one launch: the arrays, the samples and the law between two steps."""

from dataclasses import dataclass
from typing import Any

import torch

from engine.launch import Launch, prepare
from engine.loops import loop_over

MOST_COMPONENTS = 128
"""Compile times grow with the square of the numbers that a kernel unrolls over."""


@dataclass(frozen=True)
class Law:
    """What a kernel is compiled for: which paths it needs, and how they make λ_t.

    Attributes:
        uses_physics, uses_policy: whether λ_t depends on Aᵀλ_{t+1} and on Kᵀμ_t.
        rule: an object with the `ti.func` `on_sample(direct, physics, policy, t)`, which returns λ_t of one sample from
            vectors, and, if it acts between steps for which a control is held, `on_sample_between(adjoint, step)`, what
            becomes of λ there; None for the sum of ∂ℓ_t/∂x_t and the paths with weights.
    """

    uses_physics: bool
    uses_policy: bool
    rule: Any = None

    @property
    def sums_paths(self) -> bool:
        return self.rule is None

    @property
    def acts_between(self) -> bool:
        return hasattr(self.rule, "on_sample_between")


@dataclass(frozen=True)
class SweepArrays:
    """A segment of S steps of a rollout, and what its sweep is made of.

    Attributes:
        states: [S+1, B, *state_shape]; controls: [S, B, *control_shape].
        direct: [S, B, *state_shape], ∂ℓ_t/∂x_t.
        jacobian: [S, B, m, n], K_t, read only if the law uses the policy.
        adjoints: [S+1, B, *state_shape]; the last is given, the others are written.
        cotangents: [S, B, *control_shape]; hold ∂ℓ_t/∂u_t, to which Bᵀλ_{t+1} is added.
        samples: the samples that are swept.
        start: [1] of int32, t of the first step, read at every launch.
        law: how λ_t is made.
        weights: p and k of a law that sums paths.
        disturbed: whether x_{t+1} is not S(x_t, u_t) alone, as where noise is added to it.
        parameters, parameter_adjoint: [B, q], as in `System.prepare_pull_back`, where parameters vary between samples;
            to the second, if it is given, Σ_t (∂S/∂p)ᵀ λ_{t+1} is added.
    """

    states: torch.Tensor
    controls: torch.Tensor
    direct: torch.Tensor
    jacobian: torch.Tensor
    adjoints: torch.Tensor
    cotangents: torch.Tensor
    samples: slice
    start: torch.Tensor
    law: Law
    weights: tuple[float, float] = (0.0, 0.0)
    disturbed: bool = False
    parameters: torch.Tensor | None = None
    parameter_adjoint: torch.Tensor | None = None

    def prepare(self, kernel, *own) -> Launch:
        """Bind `kernel(states, controls, direct, jacobian, adjoints, cotangents, first, last, start, p, k, loop, law,
        *own)`, which sweeps the samples [first, last).
        """
        first, last, _ = self.samples.indices(self.states.shape[1])
        arrays = self.states, self.controls, self.direct, self.jacobian, self.adjoints, self.cotangents
        numbers = first, last, self.start, *(float(weight) for weight in self.weights)
        owner = "" if self.law.sums_paths else f" by {type(self.law.rule).__name__}.on_sample"
        return prepare(kernel, *arrays, *numbers, loop_over(last - first), self.law, *own, owner=owner)

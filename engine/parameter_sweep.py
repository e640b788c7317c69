"""The part of an adjoint sweep that belongs to physical parameters, which vary between samples."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.observed import ObservedTrace
from engine.plan import Segment
from engine.rules import AdjointRule, sums_paths
from engine.trajectory import Trajectory


class ParameterSweep:
    """∂L/∂p = Σ_t (∂ℓ_t/∂p + (∂S/∂p)ᵀ λ_{t+1} + k (∂O/∂p)ᵀ (∂π/∂o)ᵀ μ_t) + ∂ℓ_T/∂p for each rule, sample by sample.

    λ and μ are those of the rule; k is its weight of the policy path, or 1 for a rule without weights that uses it.

    Attributes:
        direct: [B, q] Σ_t ∂ℓ_t/∂p, the same for every rule.
        of_system: [B, all parameters of the system], what pull-backs and sweeps of one segment add to.
    """

    def __init__(self, rollout: Trajectory):
        parameters = rollout.parts.parameters
        assert parameters is not None
        self.rollout, self._parameters = rollout, parameters
        self.direct = torch.zeros_like(parameters.rows)
        given = parameters.of_system
        self.of_system = torch.zeros_like(parameters.rows if given is None else given)
        self._totals: dict[AdjointRule, torch.Tensor] = {}

    def begin(self, rules: Iterable[AdjointRule]) -> torch.Tensor:
        """Before the first segment; returns `direct`, to which ∂ℓ_t/∂p are to be added."""
        self.direct.zero_()
        self._totals = {rule: torch.zeros_like(self.direct) for rule in rules}
        return self.direct

    def arguments(self, samples: slice = slice(None)) -> dict[str, Any]:
        """What the system's launches are prepared with besides."""
        given = self._parameters.arguments(samples)
        return {**given, "parameter_adjoint": self.of_system[samples]} if given else {}

    @contextmanager
    def again(self, samples: slice, spoilt: torch.Tensor) -> Iterator[None]:
        """A block that sweeps a segment once more, of which only what it finds for `spoilt` samples counts."""
        rows = self.of_system[samples]
        kept = rows[~spoilt].clone()
        rows.zero_()
        yield
        rows[~spoilt] = kept

    def add(
        self, rule: AdjointRule, acting: AdjointRule, part: Segment, samples: slice, cotangents: torch.Tensor
    ) -> None:
        """Add a segment that was swept by a rule, in its place `acting`, with its cotangents [slots, B, ...]."""
        total = self._totals[rule]
        if self._parameters.of_system is not None:
            self._parameters.gather(self.of_system[samples], total[samples])
        trace, rollout = self.rollout.trace, self.rollout
        if not rule.uses_policy or not isinstance(trace, ObservedTrace):
            return
        weight = acting.path_weights[1] if sums_paths(acting) else 1.0
        for first, last in part.own_blocks(rollout.block, rollout.horizon):
            seen = trace.pull_back_rows(first, last, rollout.states[first:last], cotangents[first:last], samples)
            total[samples] += weight * seen

    def found(self) -> dict[AdjointRule, torch.Tensor]:
        """∂L/∂p [B, q] for each rule."""
        return {rule: total + self.direct for rule, total in self._totals.items()}

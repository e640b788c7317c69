"""A physical parameter that multiplies controls: systems that have one need no kernels of their own for it."""

from dataclasses import dataclass

import torch

from engine.launch import Launch
from engine.system import System


@dataclass(frozen=True)
class Gain:
    """S(x, u; p) = S(x, u p/p₀): the step with controls in proportion to the only parameter that a system has.

    Attributes:
        usual: p₀, which the system's own kernels have.
        rows: of a sample's control, those that are multiplied; None for all.
    """

    usual: float
    rows: int | None = None

    def prepare_step(
        self,
        system: System,
        state: torch.Tensor,
        control: torch.Tensor,
        next_state: torch.Tensor,
        parameters: torch.Tensor,
    ) -> Launch:
        """As `System.prepare_step`, for parameters [B, 1]."""
        scaled = system.scratch("scaled control", *control.shape)
        step = system.prepare_step(state, scaled, next_state)

        def launch() -> None:
            self._scale(control, parameters, scaled)
            step()

        return launch

    def prepare_pull_back(
        self,
        system: System,
        state: torch.Tensor,
        control: torch.Tensor,
        next_adjoint: torch.Tensor,
        adjoint: torch.Tensor,
        cotangent: torch.Tensor,
        parameters: torch.Tensor,
        parameter_adjoint: torch.Tensor | None,
    ) -> Launch:
        """As `System.prepare_pull_back`, for parameters [B, 1]: p̄ = Σ u ū/p₀ with ū the cotangent of what acts."""
        assert parameter_adjoint is not None
        scaled, pulled = (system.scratch(name, *control.shape) for name in ("scaled control", "its cotangent"))
        pull_back = system.prepare_pull_back(state, scaled, next_adjoint, adjoint, pulled)

        def launch() -> None:
            self._scale(control, parameters, scaled)
            pulled.zero_()
            pull_back()
            parameter_adjoint[:, 0].add_((pulled * control)[:, : self.rows].flatten(1).sum(1), alpha=1.0 / self.usual)
            self._scale(pulled, parameters, scaled)
            cotangent.add_(scaled)

        return launch

    def _scale(self, values: torch.Tensor, parameters: torch.Tensor, scaled: torch.Tensor) -> None:
        scaled.copy_(values)
        factor = (parameters[:, 0] / self.usual).view(-1, *[1] * (values.dim() - 1))
        scaled[:, : self.rows].mul_(factor)

"""A system whose parameters are further controls, so that all its derivatives can be tried at once."""

import math

import torch

from engine.system import System


class ParametersAsControls(System):
    """S(x, (u, p)) for controls [B, m + q]: those of another system, flat, and a row of its parameters."""

    def __init__(self, system: System):
        self.system, self.name, self.state_shape = system, system.name, system.state_shape
        self._controls = math.prod(system.control_shape)
        self.control_shape = (self._controls + len(system.constants),)

    def usual(self, control: torch.Tensor) -> torch.Tensor:
        """Controls [B, *control_shape] of the other system beside the usual values of its parameters."""
        values = control.new_tensor(list(self.system.parameters.values())).expand(len(control), -1)
        return torch.cat([control.flatten(1), values], 1)

    def _parts(self, control: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers for the controls and the parameters of a batch."""
        parts = control.split([self._controls, len(self.system.constants)], 1)
        own, rows = (torch.zeros_like(part, memory_format=torch.contiguous_format) for part in parts)
        return own.view(len(control), *self.system.control_shape), rows

    def prepare_step(self, state, control, next_state):
        own, rows = self._parts(control)
        step = self.system.prepare_step(state, own, next_state, parameters=rows)  # type: ignore[call-arg]

        def launch() -> None:
            own.copy_(control[:, : self._controls].view_as(own))
            rows.copy_(control[:, self._controls :])
            step()

        return launch

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        (own, rows), (of_own, of_rows) = self._parts(control), self._parts(cotangent)
        pull_back = self.system.prepare_pull_back(
            state, own, next_adjoint, adjoint, of_own, parameters=rows, parameter_adjoint=of_rows  # type: ignore
        )  # fmt: skip

        def launch() -> None:
            for given, (controls, parameters) in ((control, (own, rows)), (cotangent, (of_own, of_rows))):
                controls.copy_(given[:, : self._controls].view_as(controls))
                parameters.copy_(given[:, self._controls :])
            pull_back()
            cotangent.copy_(torch.cat([of_own.flatten(1), of_rows], 1))

        return launch

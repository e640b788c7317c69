"""Linear state feedback."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from policies.alone import dense
from policies.checks import check_draw, shape
from policies.policy import Policy


class Linear(Policy):
    """u = W x + b, Glorot-uniform W (or zero) and zero b.

    Args:
        state_shape, control_shape: shapes of one sample; flattened at both ends.
        bias: whether there is a b.
        zero_last: start W at zero, so that the first controls are 0.
        members, dtype, device: as in `Policy`.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        bias: bool = True,
        zero_last: bool = False,
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.inputs = math.prod(shape("state shape", state_shape))
        self.outputs = math.prod(shape("control shape", control_shape))
        count = self.inputs * self.outputs + (self.outputs if bias else 0)
        super().__init__(state_shape, control_shape, count, members, dtype, device)
        self.bias, self.zero_last = bias, zero_last

    @property
    def architecture(self) -> dict[str, Any]:
        return {**super().architecture, "bias": self.bias, "zero_last": self.zero_last}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        weights, biases = self._parts()
        control = torch.bmm(state.flatten(2), weights)
        if self.bias:
            control = control + biases.unsqueeze(1)
        return control.unflatten(2, self.control_shape)

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of W [P, inputs, outputs] and b [P, outputs], the latter empty without a bias."""
        count = self.inputs * self.outputs
        return self.theta[:, :count].unflatten(1, (self.inputs, self.outputs)), self.theta[:, count:]

    def _alone(self, member: int) -> nn.Module:
        weights, biases = self._parts()
        return dense([(weights[member], biases[member] if self.bias else None)], self.control_shape)

    @torch.no_grad()
    def initialise(self, member: int, generator: torch.Generator) -> None:
        check_draw(member, self.members, generator)
        limit = math.sqrt(6.0 / (self.inputs + self.outputs))
        draw = torch.rand(self.inputs * self.outputs, generator=generator, dtype=torch.float64)
        self.theta[member].zero_()
        if not self.zero_last:
            self.theta[member, : len(draw)].copy_((2.0 * draw - 1.0) * limit)

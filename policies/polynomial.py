"""The two-parameter policy of a scalar state."""

from typing import Any

import torch

from policies.checks import check_draw
from policies.policy import Policy, class_name


class Polynomial(Policy):
    """u = θ₁ x² + θ₂ x, element by element; Fig. 1 of Schnell and Thuerey (ICLR 2024).

    State and control have the same shape; θ starts uniform in [-1, 1]². Arguments as in `Policy`.
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (1,),
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(shape, shape, 2, members, dtype, device)

    @property
    def architecture(self) -> dict[str, Any]:
        return {"class": class_name(self), "shape": list(self.state_shape)}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        square, linear = self.theta.view(self.members, 2, *[1] * (state.dim() - 1)).unbind(1)
        return square * state**2 + linear * state

    @torch.no_grad()
    def initialise(self, member: int, generator: torch.Generator) -> None:
        check_draw(member, self.members, generator)
        draw = torch.rand(2, generator=generator, dtype=torch.float64)
        self.theta[member].copy_(2.0 * draw - 1.0)

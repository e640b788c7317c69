"""Controls that are parameters themselves, whatever the state."""

from collections.abc import Sequence
from typing import Any

import torch

from policies.checks import check_draw, shape, size
from policies.policy import Policy, class_name


class OpenLoop(Policy):
    """u_t = θ_t for t = 0..T-1, the same for every sample of a member; starts at 0.

    It acts on an observation of the time alone: `Rollout(..., observation=Observation.clock())`. What is not a step of
    the horizon has the controls of the step nearest to it.

    Args:
        control_shape: shape of one sample's control.
        horizon: T, steps.
        members, dtype, device: as in `Policy`.
    """

    def __init__(
        self,
        control_shape: Sequence[int],
        horizon: int,
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.horizon = size("an open loop of at least 1 step", horizon)
        control_shape = shape("control shape", control_shape)
        numbers = torch.Size(control_shape).numel()
        super().__init__((1,), control_shape, self.horizon * numbers, members, dtype, device)

    @property
    def architecture(self) -> dict[str, Any]:
        return {"class": class_name(self), "control_shape": list(self.control_shape), "horizon": self.horizon}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        steps = state.detach()[..., 0].nan_to_num().clamp(0, self.horizon - 1).round().long()
        controls = self.theta.unflatten(1, (self.horizon, -1))
        chosen = controls.gather(1, steps.unsqueeze(2).expand(-1, -1, controls.shape[2]))
        return chosen.unflatten(2, self.control_shape)

    @torch.no_grad()
    def initialise(self, member: int, generator: torch.Generator) -> None:
        check_draw(member, self.members, generator)
        self.theta[member].zero_()

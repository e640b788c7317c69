"""Rollouts that end before the horizon, each sample at its own step."""

from collections.abc import Callable

import torch

from engine.contracts import described, unchanged
from engine.errors import SettingError, ShapeError
from engine.launch import Launch

End = Callable[[torch.Tensor], torch.Tensor]
"""`end(states)` [B] of booleans for states [B, *state_shape]: whether a sample ends there."""


class Ends:
    """Which samples of a rollout have ended, and when.

    A sample ends at the first step τ ≥ 1 at which `end(x_τ)` holds. It stays in x_τ and pays the final cost there: its
    loss is Σ_{t<τ} ℓ_t(x_t, u_t) + ℓ_T(x_τ), and λ_t = 0 for t > τ, μ_t = 0 for t ≥ τ, whatever the Jacobians are.
    The gradient is that of a rollout of τ steps; how θ moves τ itself has no derivative. A rule that limits λ limits
    λ_τ too, which it makes of ∂ℓ_T/∂x.

    Attributes:
        at: [B] τ of each sample; the horizon T where it does not end before.
    """

    def __init__(self, end: End, batch: int, horizon: int, device: torch.device):
        if not callable(end):
            raise SettingError(f"Expected an end as a function of states, or None, got {end!r}.")
        self.end, self.horizon = end, horizon
        self.at = torch.full((batch,), horizon, dtype=torch.int64, device=device)
        self._known = False

    def begin(self, initial: torch.Tensor, holds: Callable[[torch.Tensor], bool]) -> None:
        """Forget the last rollout; SettingError if a sample ends where this one starts.

        `holds(flags)` says whether all of these are true.
        """
        check_goes_on(self.end, initial, holds)
        self.at.fill_(self.horizon)
        self._known = False

    def conclude(self) -> None:
        """From now on ends are known, and steps only repeated."""
        self._known = True

    def prepare_step(
        self, step: Launch, state: torch.Tensor, next_state: torch.Tensor, now: Callable[[], int]
    ) -> Launch:
        """A launch of `step` after which samples that have ended are where they were; `now()` is the step's t."""
        shape = (-1, *[1] * (state.dim() - 1))
        state, next_state = state.detach(), next_state.detach()

        def launch() -> None:
            step()
            t = now()
            over = self.at <= t
            torch.where(over.view(shape), state, next_state, out=next_state)
            if not self._known and t + 1 < self.horizon:
                self.at.masked_fill_(is_over(self.end, next_state) & ~over, t + 1)

        return launch

    def alive(self, steps: torch.Tensor) -> torch.Tensor:
        """[S, B], whether a sample has not ended at these steps [S]."""
        return steps.view(-1, 1) < self.at

    def masked(self, values: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Running costs [S, B] without those after the end."""
        return torch.where(self.alive(steps), values, torch.zeros((), dtype=values.dtype, device=values.device))

    def settle(self, steps: torch.Tensor, states: torch.Tensor, controls: torch.Tensor, final: torch.Tensor) -> None:
        """Make ∂ℓ_t/∂x_t [S, B, ...] and ∂ℓ_t/∂u_t those of rollouts that end: ∂ℓ_T/∂x at x_τ, and then 0."""
        alive = self.alive(steps)
        for gradients in (states, controls):
            gradients.masked_fill_(~alive.view(*alive.shape, *[1] * (gradients.dim() - 2)), 0.0)
        # Samples that end elsewhere keep what stands at their first step.
        inside = (self.at >= steps[0]) & (self.at <= steps[-1]) & (self.at < self.horizon)
        at = torch.where(inside, self.at - steps[0], 0), torch.arange(len(final), device=final.device)
        states[at] = torch.where(inside.view(-1, *[1] * (final.dim() - 1)), final, states[at])

    def reaching(self, final: torch.Tensor) -> torch.Tensor:
        """∂ℓ_T/∂x_T [B, ...] of the samples that reach the horizon, 0 of the others."""
        return final.masked_fill((self.at < self.horizon).view(-1, *[1] * (final.dim() - 1)), 0.0)


def is_over(end: End, states: torch.Tensor) -> torch.Tensor:
    """`end(states)` [B]; ShapeError for anything but booleans for each sample, AdjointError if it writes to states."""
    found = unchanged(end, "an end", states)
    if not isinstance(found, torch.Tensor) or found.dtype != torch.bool or found.shape != states.shape[:1]:
        got = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else described(found)
        raise ShapeError(f"Expected an end as booleans [{len(states)}], one for each sample, got {got}.")
    return found


def check_goes_on(end: End, initial: torch.Tensor, holds: Callable[[torch.Tensor], bool] | None = None) -> None:
    """SettingError if one of these initial states has ended; `holds(flags)`, if given, says whether all are true."""
    over = is_over(end, initial)
    if not (holds(~over) if holds is not None else bool((~over).all())):
        raise SettingError(
            f"Expected initial states that have not ended, got one at sample {int(over.nonzero()[0])} that has; "
            "start elsewhere, or mend the end."
        )

"""Score estimators: gradients of zeroth order, from losses of copies whose controls are disturbed.

Each of the b initial states of a batch is rolled out once as it is and n times with u_t = π(x_t) + σ w_t, w standard
normal, in antithetic pairs w, -w. With J the loss of a copy and J̄ the mean of those of all rows but its own pair, an
initial state's gradient is

    z = 1/n Σ_copies (J - J̄)/σ Σ_t Πᵀ w_t

whose mean is the gradient of the mean loss under such noise, which for σ → 0 is that of R; where the policy is shown
the states x̄_t of the rollout without noise instead, it is that of M. One pull-back to the parameters, no sweep. A
task's own noise is the same in all rows of a start, and that of a sweep from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from engine import ONE_STEP, BudgetError, Rollout, SettingError
from engine.checks import finite, whole
from policies import Policy
from training.objectives import Objective
from training.task import Task


@dataclass(frozen=True)
class Score:
    """The mean of z over a batch, with the policy in the loop of every copy: R in the limit of small σ."""

    sigma: float = 0.1
    copies: int = 16
    closed: ClassVar[bool] = True

    def __post_init__(self):
        sigma = finite("a finite sigma above 0", self.sigma, lambda number: number > 0)
        copies = whole("at least 2 copies", self.copies, least=2)
        if copies % 2:
            raise SettingError(f"Expected copies in pairs, got {copies}.")
        object.__setattr__(self, "sigma", sigma)
        object.__setattr__(self, "copies", copies)

    @property
    def rules(self) -> tuple["Score"]:
        return (self,)

    def combine(self, gradients: Mapping[Any, torch.Tensor]) -> torch.Tensor:
        return gradients[self]


@dataclass(frozen=True)
class PhysicsScore(Score):
    """The mean of z over a batch, with the policy shown the states without noise: M in the limit of small σ."""

    closed: ClassVar[bool] = False


class Copies:
    """The disturbed copies of some members' initial states, in one rollout; everything of it is stored.

    Args:
        task: what is judged.
        policy: of these members alone; the caller keeps its parameters as they should be.
        score: σ, n, and what the policy is shown.
        batch: b, initial states of a member.

    Attributes:
        rows: n + 1, of each start.
    """

    def __init__(self, task: Task, policy: Policy, score: Score, batch: int):
        self.policy, self.score, self.rows = policy, score, score.copies + 1
        self._objective, self._starts = task.objective, policy.members * batch
        self._linear = _Linear()  # one for all updates: what is new is tried out first
        self._disturbed = _Disturbed(policy, self.rows, score.closed)
        try:
            self.rollout = Rollout(task.system, self._disturbed, task.horizon, self._starts * self.rows, **task.parts)
        except BudgetError as error:
            met, _, _ = str(error).partition(";")
            raise BudgetError(f"{met}; take fewer copies than {score.copies}, or lower the batch.") from None

    def gradients(
        self, initial: torch.Tensor, noise: torch.Tensor, parameters: torch.Tensor | None = None
    ) -> torch.Tensor:
        """z of every member [P, n], NaN where a loss is not finite; starts to be told apart are members of their own.

        Args:
            initial: states [P·b, *state_shape].
            noise: w of the first of each pair, [P·b, n/2, T, *control_shape].
            parameters: those that the task randomises [P·b, q].
        """
        score, rows = self.score, self.rows
        self._disturbed.noise = self._at_rows(noise) * score.sigma
        given = None if parameters is None else parameters.repeat_interleave(rows, 0)
        losses = self.rollout.forward(initial.repeat_interleave(rows, 0), self._objective, given)
        assert losses is not None
        above = losses.view(-1, rows)[:, 1:] - losses.view(-1, rows)[:, :1]  # J - that of the row without w
        pairs = above.unflatten(1, (2, -1)).sum(1).repeat(1, 2)
        others = (above.sum(1, keepdim=True) - pairs) / (rows - 2)
        weights = torch.zeros(self._starts, rows, dtype=losses.dtype, device=losses.device)
        weights[:, 1:] = (above - others) / score.sigma * (rows / score.copies)
        lost = ~torch.isfinite(weights).all(1, keepdim=True)
        weights.masked_fill_(lost, 0.0)
        shape = self._disturbed.noise.shape
        cotangents = self._at_rows(noise).view(shape[0], self._starts, rows, -1) * weights.unsqueeze(2)
        if not score.closed:
            cotangents = self._alive(cotangents)
            cotangents = torch.cat([cotangents.sum(2, keepdim=True), torch.zeros_like(cotangents[:, :, 1:])], 2)
        self._linear.weights = cotangents.view(shape)
        # The mean over a member's rows of Σ_t Πᵀ c_t.
        found = self.rollout.backward([ONE_STEP], self._linear).parameters[ONE_STEP]
        return found.masked_fill_(lost.view(len(found), -1).any(1, keepdim=True), torch.nan)

    def _alive(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Those [T, P·b, n+1, m] of copies that have not ended; their sum counts as long as one of them goes on."""
        ends = self.rollout.parts.ends
        if ends is None:
            return cotangents
        alive = ends.alive(torch.arange(len(cotangents), device=cotangents.device))
        at = ends.at.view(self._starts, self.rows)
        at[:, 0] = at.max(1).values
        return cotangents * alive.view(len(cotangents), self._starts, self.rows, 1)

    def _at_rows(self, noise: torch.Tensor) -> torch.Tensor:
        """w [T, P·b·(n+1), *control_shape] of all rows: none for the first of a start, then w and -w."""
        pairs = torch.cat([torch.zeros_like(noise[:, :1]), noise, -noise], 1)
        return pairs.flatten(0, 1).transpose(0, 1).contiguous()


class _Linear(Objective):
    """Σ_t c_t · u_t, whose derivative by the controls is c = `weights` [T, B, *control_shape]."""

    weights: torch.Tensor

    def running(self, states, controls, steps):
        return (controls * self.weights[steps]).flatten(2).sum(2)


class _Disturbed:
    """A policy with noise on its controls, as the engine's controller; every `rows`-th sample has none.

    Attributes:
        noise: σ w [T, B, *control_shape], for the next rollout.
    """

    def __init__(self, policy: Policy, rows: int, closed: bool):
        self.policy, self.noise = policy, torch.zeros(0)
        self._rows, self._closed = rows, closed
        self.members, self.parameter_count = policy.members, policy.parameter_count
        self.dtype, self.device = policy.dtype, policy.device
        self.check, self.watch = policy.check, policy.watch
        self.trace_bytes, self.scratch_bytes = policy.trace_bytes, policy.scratch_bytes

    def trace(self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> Any:
        trace = self.policy.trace(slots, batch, state_shape, control_shape)
        act_alone = trace.prepare_act

        def prepare_act(slot: int, state: torch.Tensor, control: torch.Tensor) -> Callable[[], None]:
            act, starts = act_alone(slot, state, control), control.unflatten(0, (-1, self._rows))

            def act_disturbed() -> None:
                act()
                if not self._closed:
                    starts[:, 1:] = starts[:, :1]
                control.add_(self.noise[slot])

            return act_disturbed

        trace.prepare_act = prepare_act
        return trace

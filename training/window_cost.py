"""What a window of a task's steps is judged by: its costs, and what a critic says is still to be paid after it."""

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from engine import current
from engine.contracts import check_tensor
from engine.observation import Observation
from training.objectives import Objective
from training.task import Task

START = "start_of_window"
"""The parameter of a sample that says at which of the task's steps its window begins."""


class WindowCost(Objective):
    """Σ_{s<τ} γˢ ℓ_{t₀+s}(x_s, u_s) + γ^τ v(x_τ) for windows of h steps that begin at steps t₀ of the task.

    A window lasts τ = h steps, or fewer where the sample ends or the task's horizon T is reached:

        v = ℓ_T(x_τ)   where it ended, and at the horizon if the task has a final cost
        v = V(o_τ)     at the horizon of any other task, and wherever it goes on

    with ℓ_T = 0 at the end of a task without a final cost. ℓ is asked for every sample at a time of its own. Where
    there is a final cost, what is still to be paid depends on when it is due: then V is shown (T - t)/T beside o.

    Args:
        task: whose costs these are.
        value: V [B] of what is `seen` [B, *shape].
        discount: γ [B].

    Attributes, of the windows that are judged:
        stop: τ [B].
        inside: [B], whether the sample was stepped on after τ, as the horizon lets it, and was not held at x_τ.
        ended, out_of_time: [B], whether it ended at τ, or else reached the horizon there.
    """

    stop: torch.Tensor
    inside: torch.Tensor
    ended: torch.Tensor
    out_of_time: torch.Tensor

    def __init__(self, task: Task, value: Callable[[torch.Tensor], torch.Tensor], discount: torch.Tensor):
        self._task, self._value, self._discount, self._timed = task, value, discount, has_final(task)
        self.parameters = {**getattr(task.objective, "parameters", {}), START: 0.0}
        self._named: Mapping[str, torch.Tensor] = MappingProxyType({})

    def given(self, parameters):
        other = copy.copy(self)
        other._named = parameters
        return other

    def running(self, states, controls, steps):
        places, stop = steps.view(-1, 1), self.stop
        zero = states.new_zeros(())
        costs = torch.where(places < stop, self._discount**places * self.of_steps(states, controls, steps), zero)
        here = self.inside & (stop >= steps[0]) & (stop <= steps[-1])
        if not bool(here.any()):
            return costs
        last = states[torch.where(here, stop - steps[0], 0), torch.arange(len(stop), device=stop.device)]
        alone = self.given({name: values[0] for name, values in self._named.items()})
        return torch.where(here & (places == stop), self._discount**stop * alone.after(last), costs)

    def final(self, state):
        return torch.where(self.inside, 0.0, self._discount**self.stop * self.after(state))

    def of_steps(self, states: torch.Tensor, controls: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """ℓ [S, B], as the task has it."""
        # Costs that are asked for beyond the horizon are not used, and a table of each step's has none.
        times = (steps.view(-1, 1) + self._named[START]).flatten().long().clamp(max=self._task.horizon - 1)
        objective = self._objective({name: values.flatten().unsqueeze(1) for name, values in self._named.items()})
        costs = objective.running(states.flatten(0, 1).unsqueeze(1), controls.flatten(0, 1).unsqueeze(1), times)
        return states.new_zeros(states.shape[:2]) if costs is None else costs.view(states.shape[:2])

    def after(self, state: torch.Tensor) -> torch.Tensor:
        """v [B] of states x_τ [B, *state_shape]."""
        final = self._objective(self._named).final(state)
        if final is not None:
            check_tensor("a final cost for each sample", final, (len(state),), state)
        seen = self.seen(state[None], self.stop[None])[0]
        if final is None:
            return torch.where(self.ended, 0.0, self._value(seen))
        return torch.where(self.ended | self.out_of_time, final, self._value(seen))

    def seen(self, states: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """What the critic is shown [S, B, *shape] of states [S, B, ...] at `steps` [S, 1] or [S, B] of the windows."""
        found = observed(self._task, states, steps, self._named)
        if not self._timed:
            return found
        horizon = self._task.horizon
        left = (horizon - self._named[START] - steps).expand(states.shape[:2]) / horizon
        return torch.cat([found.flatten(2), left.to(found.dtype).unsqueeze(2)], 2)

    def _objective(self, named: Mapping[str, torch.Tensor]) -> Any:
        given = getattr(self._task.objective, "given", None)
        named = {name: values for name, values in named.items() if name != START}
        return given(named) if named and given is not None else self._task.objective


def has_final(task: Task) -> bool:
    """Whether the task has a final cost, which makes its horizon a part of the problem."""
    runtime = current()
    state = task.initial_states(1, 0, "test", runtime.dtype).to(runtime.device)
    return task.objective.final(state) is not None


def critics_shape(task: Task) -> tuple[int, ...]:
    """The shape of what a critic is shown of a sample."""
    shape = task.system.state_shape if task.observation is None else task.observation.shape
    return (math.prod(shape) + 1,) if has_final(task) else tuple(shape)


def observed(task: Task, states: torch.Tensor, steps: torch.Tensor, named: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What is seen of states [S, B, ...] at `steps` [S, 1] or [S, B] of windows that begin at `named[START]`.

    `named` are parameters [S, B] or [B]. Every sample has a time of its own, so samples stand where others have steps;
    beyond the horizon, where nothing is used, it is the horizon.
    """
    observation = task.observation
    if observation is None:
        return states
    rows = {name: values.expand(states.shape[:2]).reshape(-1, 1) for name, values in named.items()}
    times = (steps + named[START].expand(states.shape[:2])).flatten().long().clamp(max=task.horizon)
    del rows[START]
    return observation(states.flatten(0, 1).unsqueeze(1), times, rows).view(*states.shape[:2], *observation.shape)


def in_windows(task: Task) -> Observation | None:
    """The task's observation in rollouts of windows, whose parameters have `START` among them."""
    if task.observation is None:
        return None
    return Observation(
        lambda states, steps, named: observed(task, states, steps.view(-1, 1), named), task.observation.shape
    )

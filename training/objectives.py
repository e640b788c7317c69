"""Objectives: what a rollout is judged by, as torch expressions."""

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from engine.checks import finite


class Objective:
    """L = Σ_t ℓ_t(x_t, u_t) + ℓ_T(x_T), per sample; override `running`, `final`, or both.

    Written in torch, on any number of steps and samples at once; derivatives come from torch autograd, so nothing may
    be detached, sent through `.item()` or numpy, or changed in place. Costs have the dtype and device of the states.

    A sample ends early by a mask, `torch.where(alive, cost, 0)`: with no cost after its end its adjoint is zero there,
    whatever becomes of its state, and the gradient is that of a rollout that stops. Torch multiplies derivatives of
    what it masks by 0, so where these are infinite at finite states (a root at 0, a power that overflows) mask the
    argument too: `torch.where(alive, torch.where(alive, x, 1).sqrt(), 0)`; a gradient that is NaN is told.

    Attributes:
        goal: where the system should be, as its drawing takes it: a number, a place or a tensor; None for nowhere.
        parameters: of its own that may vary between samples, such as a goal, with the values they have otherwise.
        positive_parameters: names of those that are above 0.
    """

    goal: Any = None
    parameters: Mapping[str, float] = MappingProxyType({})
    positive_parameters: tuple[str, ...] = ()

    def given(self, parameters: Mapping[str, torch.Tensor]) -> "Objective":
        """The same for samples with these parameters, each [S, B] in `running` and [B] in `final`."""
        return self

    def aimed_at(self, place: tuple[float, float]) -> "Objective | None":
        """The same with its goal at another place of the plane; None where the goal is no such place."""
        return None

    def running(self, states: torch.Tensor, controls: torch.Tensor, steps: torch.Tensor) -> torch.Tensor | None:
        """ℓ_t [S, B] for states [S, B, *state_shape], controls [S, B, *control_shape] at the times `steps` [S]."""
        return None

    def final(self, state: torch.Tensor) -> torch.Tensor | None:
        """ℓ_T [B] for the last state [B, *state_shape]."""
        return None


def constant(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Numbers that an objective computes with as a tensor of the dtype and on the device of `like`, made once.

    Made at every use they would be copied to a device every time, for which the host waits.
    """
    return _constant(tuple(numbers), like.dtype, like.device)


@lru_cache(256)
def _constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # autograd may be shown it
        return torch.tensor(numbers, dtype=dtype, device=device)


def after_the_start(steps: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """Costs of states [S, B] at `steps` [S] without those of step 0, whose states are given."""
    return steps.clamp(max=1).view(-1, *[1] * (costs.dim() - 1)) * costs


class Aimed(Objective):
    """An objective with a goal in the plane or in space, which may vary as `target_x`, `target_y` and `target_z`.

    Args:
        goal: one coordinate for each axis.
    """

    _AXES = ("target_x", "target_y", "target_z")
    _place: tuple[Any, ...] | None

    def __init__(self, goal: tuple[float, ...]):
        self._aim(goal)

    def _aim(self, goal: tuple[float, ...]) -> None:
        self.goal, self._place = tuple(float(coordinate) for coordinate in goal), None
        self.parameters = dict(zip(self._AXES, self.goal, strict=False))

    def given(self, parameters):
        if not self.parameters.keys() & parameters.keys():
            return self
        other = copy.copy(self)
        other._place = tuple(parameters.get(name, usual) for name, usual in self.parameters.items())
        return other

    def aimed_at(self, place):
        if len(place) != len(self.goal):
            return None
        other = copy.copy(self)
        other._aim(place)
        return other

    def target(self, state: torch.Tensor) -> torch.Tensor:
        """The goal as [..., axes, 1], to be taken from places [..., axes, N] of `state`."""
        if self._place is None:
            return constant(self.goal, state).unsqueeze(-1)
        place = (
            value.to(state) if isinstance(value, torch.Tensor) else constant((value,), state)[0]
            for value in self._place
        )
        return torch.stack(torch.broadcast_tensors(*place), -1).unsqueeze(-1)


class Quadratic(Objective):
    """½ Σ_{t=1..T} x_tᵀ Q x_t + ½ r Σ_{t<T} |u_t|².

    Args:
        Q: diagonal of Q, one weight for each state component.
        r: control weight.
    """

    def __init__(self, Q: tuple[float, ...], r: float):
        self.weights = tuple(finite("finite weights of the state", weight) for weight in Q)
        self.r = finite("a finite weight of the control", r)

    def running(self, states, controls, steps):
        return after_the_start(steps, self.final(states)) + 0.5 * self.r * controls.flatten(2).square().sum(2)

    def final(self, state):
        return 0.5 * (state.square() * constant(self.weights, state)).sum(-1)

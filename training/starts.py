"""What a task is made of besides its physics and its objective: a default policy, and states to start from."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from engine import KernelSystem, SettingError, ShapeError, System, current
from engine.available import check_available, check_parameters
from engine.contracts import check_controller, check_system, described
from engine.held import Held
from engine.observation import Observation
from policies import MLP, Policy
from training.task import PolicyFactory, Task, generator

# Between the seeds of draws that are told apart: torch's generators read 32 bits of a seed, of which a task's use 30,
# and the golden ratio's part of 2³⁰ keeps many multiples of it away from small numbers.
_APART = 663608941
# Initial states that are drawn at once.
_POOL = 256


class _PolicyOf:
    """Builds policies of one class for one system; equal settings make equal builders."""

    def __init__(
        self, system: System, kind: Callable[..., Policy], observation: Observation | None, settings: dict[str, Any]
    ):
        if inspect.isabstract(kind):
            missing = ", ".join(sorted(kind.__abstractmethods__))
            raise SettingError(f"Expected a class of policies that is whole, got {kind.__name__} without {missing}.")
        seen = system.state_shape if observation is None else observation.shape
        self._make = partial(kind, seen, system.control_shape, **settings)
        # Functions may count their calls or draw by chance, and are called once.
        self._counts = isinstance(kind, type) and issubclass(kind, Policy)

    def __call__(self, members: int, dtype: torch.dtype, device: torch.device) -> Policy:
        if self._counts:
            self._check_parameters(members, dtype, device)
        return self._make(members=members, dtype=dtype, device=device)

    def _check_parameters(self, members: int, dtype: torch.dtype, device: torch.device) -> None:
        """BudgetError if they do not fit: counted where nothing is allocated, since that would end the process."""
        try:
            count = self._make(members=members, dtype=dtype, device=torch.device("meta")).parameter_count
        except Exception:  # a class of the user's that needs numbers; what is wrong with it shows when it is made
            return
        check_parameters(members, count, 1, dtype, device)


def policy_for(
    system: System, kind: Callable[..., Policy] = MLP, observation: Observation | None = None, **settings: Any
) -> PolicyFactory:
    """A task's default policy: from its system's states, or what is observed of them, to its controls.

    Args:
        system: whose shapes it has.
        kind: a class of policies that is made from (state_shape, control_shape, **settings, members, dtype, device),
            such as `MLP`, `Linear`, `Moments` or one of your own.
        observation: the task's, if it has one.
        settings: of that class, e.g. `hidden=(64,)`.
    """
    check_system(system)
    return _PolicyOf(system, kind, observation, settings)


def built(make: PolicyFactory, members: int) -> Policy:
    """The policy that a factory builds on the running machine; SettingError for anything else."""
    runtime = current()
    if isinstance(make, Policy) or not callable(make):
        raise SettingError(f"Expected a function that builds a policy, as policy_for gives, got {described(make)}.")
    policy = make(members=members, dtype=runtime.dtype, device=runtime.device)
    check_controller(policy)
    if policy.members != members:
        raise SettingError(f"Expected a policy with {members} members, got {policy.members}.")
    return policy


def check_starts_fit(task: Task, members: int, samples: int) -> None:
    """BudgetError for `samples` initial states of each member that are too large, before any are made."""
    runtime = current()
    needed = members * samples * math.prod(task.system.state_shape) * runtime.dtype.itemsize
    check_available(needed, f"{samples} initial states for each of {members} members", runtime.device)


def starts_of(task: Task, seeds: Sequence[int], stream: str, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Initial states [P, count, *state_shape] of P seeds, and what the task randomises [P, count, q], if anything."""
    runtime = current()
    by_seed = {seed: task.starts(count, seed, stream, runtime.dtype) for seed in dict.fromkeys(seeds)}
    check_repeatable(task, seeds[0], stream)
    found = [by_seed[seed] for seed in seeds]
    rows = [parameters for _, parameters in found if parameters is not None]
    states = torch.stack([states for states, _ in found]).to(runtime.device)
    return states, torch.stack(rows).to(runtime.device) if rows else None


def check_repeatable(task: Task, seed: int, stream: str) -> None:
    """SettingError unless equal generators give equal states."""
    one, other = (task.sample(1, generator(seed, stream)) for _ in range(2))
    if not isinstance(one, torch.Tensor):
        task.checked(one, 1)  # which says so
    if not torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True):
        raise SettingError(
            f"Expected a sampler of {task.name} that draws from the generator that it is given, got other states from "
            "an equal one; pass generator=generator to what draws them."
        )


class FreshStarts:
    """Initial states of a seed without end, with what is randomised: the k-th depends on the task, seed and k alone.

    They are drawn many at a time, since a few cost some samplers as much.
    """

    def __init__(self, task: Task, seed: int):
        self._task, self._seed, self._number = task, seed, -1
        self._pool: tuple[torch.Tensor, torch.Tensor | None] = torch.zeros(0), None

    def __call__(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Those from `first` on: [count, *state_shape], and [count, q] if anything is randomised."""
        states, rows = [], []
        while count:
            number, place = divmod(first, _POOL)
            self._draw(number)
            taken = slice(place, place + count)
            states.append(self._pool[0][taken])
            rows += [] if self._pool[1] is None else [self._pool[1][taken]]
            first, count = first + len(states[-1]), count - len(states[-1])
        return torch.cat(states), torch.cat(rows) if rows else None

    def _draw(self, number: int) -> None:
        if number == self._number:
            return
        apart, dtype = self._seed + number * _APART, current().dtype
        states = self._task.sample(_POOL, generator(apart, "environments")).to(dtype)
        rows = self._task.drawn_parameters(_POOL, generator(apart, "environments", "parameters"), dtype)
        self._pool, self._number = (states, rows), number


def show_typical(system: System, states: torch.Tensor) -> None:
    """Let the adjoint of a user's kernel be compared at states of the task too, where it has not been told others."""
    while isinstance(system, Held):
        system = system.system
    if isinstance(system, KernelSystem) and system.typical_states is None:
        system.typical_states = states


def uniform_states(
    low: Sequence[float] | float, high: Sequence[float] | float, shape: Sequence[int] | None = None
) -> Callable[[int, torch.Generator], torch.Tensor]:
    """A sampler of initial states for a task: uniform between `low` and `high`, component by component.

    Args:
        low, high: a number for each component, in the shape of the state, or one for all. Where they are equal the
            state is that.
        shape: of the state; by default that of the bounds.

    Raises:
        ShapeError: bounds of different shapes, or one for all without a shape.
        SettingError: bounds that are not finite or the wrong way round.
    """
    lower, upper = (torch.as_tensor(bound, dtype=torch.float64) for bound in (low, high))
    try:
        lower, upper = torch.broadcast_tensors(lower, upper)
        lower, upper = (bound.expand(tuple(shape or lower.shape)) for bound in (lower, upper))
    except RuntimeError as error:
        raise ShapeError(
            f"Expected bounds of one shape, that of the state, got {list(lower.shape)} and {list(upper.shape)}."
        ) from error
    if not lower.dim():
        raise ShapeError("Expected bounds for each component of the state, or its shape, got one number for all.")
    if not (torch.isfinite(lower).all() and torch.isfinite(upper).all() and (lower <= upper).all()):
        raise SettingError(f"Expected finite bounds, low first, got {low} and {high}.")

    def sample(count: int, generator: torch.Generator) -> torch.Tensor:
        drawn = torch.rand(count, *lower.shape, generator=generator, dtype=torch.float64)
        return lower + (upper - lower) * drawn

    return sample

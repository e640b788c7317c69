"""Tasks: a system, what to achieve with it, and from where to start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from engine import SettingError, ShapeError, System
from engine.checks import finite, real, whole
from engine.contracts import check_call, check_cost, check_system, described
from engine.ends import End
from engine.noise import Noise
from engine.observation import Observation
from policies import Policy
from training.objectives import Objective
from training.ranges import as_ranges, check_ranges


class PolicyFactory(Protocol):
    """Builds a policy with so many members, `theta` [members, n] in this dtype and on this device."""

    def __call__(self, members: int, dtype: torch.dtype, device: torch.device) -> Policy: ...


@dataclass(frozen=True)
class Task:
    """What a controller is trained for.

    Attributes:
        name: of the task, as on the command line.
        system: the physics.
        objective: what is minimised, per sample.
        sample: `sample(count, generator)` draws initial states [count, *state_shape], float64, on the CPU.
        horizon: T, steps.
        policy: builds the default policy.
        success: a mean test loss below it counts as solved; None where no such threshold makes sense.
        observation: what the policy sees; None for the state.
        noise: on states and controls; a seed's own, other noise at every update.
        end: `end(states)` [B] of booleans, where a sample ends before the horizon.
        randomise: (name, low, high) of parameters of the system or the objective that are drawn with each training
            state, uniformly; test states have the usual values. Text such as "pole_mass=0.08:0.12" is taken too.
        control_bounds: (low, high) of every control, where others act on the task, as `to_gymnasium` lets them.
    """

    name: str
    system: System
    objective: Objective
    sample: Callable[[int, torch.Generator], torch.Tensor]
    horizon: int
    policy: PolicyFactory
    success: float | None = None
    observation: Observation | None = None
    noise: Noise | None = None
    end: End | None = None
    randomise: tuple[tuple[str, float, float], ...] = ()
    control_bounds: tuple[float, float] | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise SettingError(f"Expected a name for a task, got {self.name!r}.")
        check_system(self.system)
        self.system.check_size()
        check_cost(self.objective)
        self._check_functions()
        object.__setattr__(self, "horizon", whole("a horizon of at least 1 step", self.horizon))
        if self.success is not None:
            object.__setattr__(self, "success", finite("a success threshold, or None", self.success))
        object.__setattr__(self, "randomise", as_ranges(self.randomise))
        positive = (*self.system.positive_parameters, *getattr(self.objective, "positive_parameters", ()))
        check_ranges(self.randomise, self.parameters, positive, self.system.not_negative_parameters)
        if self.control_bounds is not None:
            object.__setattr__(self, "control_bounds", _bounds(self.control_bounds))

    def _check_functions(self) -> None:
        """SettingError unless what is called later takes what it is called with."""
        objective = type(self.objective).__name__
        check_call(f"running of {objective} to take states, controls and steps", self.objective.running, 3)
        check_call(f"final of {objective} to take states", self.objective.final, 1)
        check_call("sample of a task to take a count and a generator", self.sample, 2)
        wanted = "policy of a task to take members, dtype and device"
        advice = "; write policy_for(system, ...)"
        if isinstance(self.policy, torch.nn.Module):
            raise SettingError(f"Expected {wanted}, got {described(self.policy)}{advice}.")
        check_call(wanted, self.policy, 0, "members", "dtype", "device", advice=advice)

    @property
    def parameters(self) -> dict[str, float]:
        """What may vary between samples, of the system's and of the objective's parameters, with its usual values."""
        return {**self.system.parameters, **getattr(self.objective, "parameters", {})}

    @property
    def parts(self) -> dict[str, Any]:
        """What its rollouts are built with besides system, policy and horizon."""
        names = tuple(name for name, *_ in self.randomise)
        return {"observation": self.observation, "parameters": names, "noise": self.noise, "end": self.end}

    def starts(
        self, count: int, seed: int, stream: str, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`initial_states` and what is randomised [count, q]: drawn for "train", else with its usual values."""
        states = self.initial_states(count, seed, stream, dtype)
        if stream != "train":
            return states, self.usual_parameters(count, dtype)
        return states, self.drawn_parameters(count, generator(seed, stream, "parameters"), dtype)

    def usual_parameters(self, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        """What is randomised [count, q], if anything, at its usual values."""
        if not self.randomise:
            return None
        usual = torch.tensor([self.parameters[name] for name, *_ in self.randomise], dtype=torch.float64)
        return usual.expand(count, -1).to(dtype).contiguous()

    def drawn_parameters(self, count: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor | None:
        """What is randomised [count, q], if anything."""
        if not self.randomise:
            return None
        low, high = (torch.tensor([entry[side] for entry in self.randomise], dtype=torch.float64) for side in (1, 2))
        draws = torch.rand(count, len(low), generator=generator, dtype=torch.float64)
        return (low + (high - low) * draws).to(dtype)

    def initial_states(self, count: int, seed: int, stream: str, dtype: torch.dtype) -> torch.Tensor:
        """`count` initial states of a seed; the streams "train", "validation" and "test" are independent."""
        count, seed = whole("at least 1 initial state", count), seed_of(seed)
        if stream not in _STREAMS:
            raise SettingError(f"Expected a stream of states among train, validation and test, got {stream!r}.")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise SettingError(f"Expected a dtype of real numbers such as torch.float32, got {dtype!r}.")
        return self.checked(self.sample(count, generator(seed, stream)), count).detach().to(dtype)

    def checked(self, states: Any, count: int) -> torch.Tensor:
        """What `sample` gave for `count`; ShapeError unless it is as many states of real numbers."""
        wanted = f"Expected task {self.name!r} to sample states of shape {[count, *self.system.state_shape]}"
        if not isinstance(states, torch.Tensor):
            raise ShapeError(f"{wanted}, got {described(states)}.")
        if states.shape != (count, *self.system.state_shape):
            raise ShapeError(f"{wanted}, got {list(states.shape)}.")
        if states.is_complex():
            raise ShapeError(f"{wanted} of real numbers, got {states.dtype}.")
        return states


def _bounds(given: Any) -> tuple[float, float]:
    """Bounds of controls, low first; SettingError if they are none."""
    wanted = "bounds of the controls (low, high), low below high"
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise SettingError(f"Expected {wanted}, got {given!r}.")
    low, high = (real(wanted, bound) for bound in given)
    if not low < high:
        raise SettingError(f"Expected {wanted}, got {given!r}.")
    return low, high


_STREAMS = {"policy": 0, "train": 1, "test": 2, "order": 3, "noise": 4, "validation": 5, "environments": 6, "critic": 7}


MOST_SEEDS = 2**30
"""Seeds are below it: further ones would begin again."""


def seed_of(given: Any, what: str = "a seed") -> int:
    """A seed, or one of several as `what` says; SettingError for anything else."""
    seed = whole(f"{what} of at least 0", given, least=0)
    if seed >= MOST_SEEDS:
        raise SettingError(f"Expected {what} below {MOST_SEEDS}, got {seed}.")
    return seed


def generator(seed: int, stream: str, of: str = "states") -> torch.Generator:
    """An independent random generator for each seed and purpose, and for what is drawn besides states."""
    # Torch's Mersenne Twister spreads nearby seeds poorly; multipliers as of SplitMix64 set them apart.
    turn, place = divmod(_STREAMS[stream], 4)  # four at a time, so that a new stream changes no number of the others
    mixed = ((seed * 4 + place + 1) * 0x9E3779B97F4A7C15 + turn * 0xD1B54A32D192ED03) % 2**63
    if of != "states":
        mixed = (mixed + 1) * 0xBF58476D1CE4E5B9 % 2**63
    return torch.Generator().manual_seed(mixed)

"""Tasks: a system, what to achieve with it, and from where to start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from engine import ShapeError, System
from engine.checks import finite, whole
from engine.contracts import check_cost, check_system
from policies import Policy
from training.objectives import Objective


class PolicyFactory(Protocol):
    """Builds a policy with `members` members."""

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
    """

    name: str
    system: System
    objective: Objective
    sample: Callable[[int, torch.Generator], torch.Tensor]
    horizon: int
    policy: PolicyFactory
    success: float | None = None

    def __post_init__(self):
        check_system(self.system)
        check_cost(self.objective)
        object.__setattr__(self, "horizon", whole("a horizon of at least 1 step", self.horizon))
        if self.success is not None:
            object.__setattr__(self, "success", finite("a success threshold, or None", self.success))

    def initial_states(self, count: int, seed: int, stream: str, dtype: torch.dtype) -> torch.Tensor:
        """`count` initial states of a seed; the streams "train", "validation" and "test" are independent."""
        count, seed = whole("at least 1 initial state", count), whole("a seed of at least 0", seed, least=0)
        states = self.sample(count, generator(seed, stream))
        expected = (count, *self.system.state_shape)
        if tuple(states.shape) != expected:
            raise ShapeError(
                f"Expected task {self.name!r} to sample states of shape {list(expected)}, got {list(states.shape)}."
            )
        return states.to(dtype)


_STREAMS = {"policy": 0, "train": 1, "test": 2, "order": 3, "noise": 4, "validation": 5}


def generator(seed: int, stream: str) -> torch.Generator:
    """An independent random generator for each seed and purpose."""
    # Torch's Mersenne Twister spreads nearby seeds poorly; multipliers as of SplitMix64 set them apart.
    turn, place = divmod(_STREAMS[stream], 4)  # four at a time, so that a new stream changes no number of the others
    mixed = ((seed * 4 + place + 1) * 0x9E3779B97F4A7C15 + turn * 0xD1B54A32D192ED03) % 2**63
    return torch.Generator().manual_seed(mixed)

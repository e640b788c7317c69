"""Hopping forward on one leg."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import tyro

from engine.checks import not_negative, positive, whole
from engine.held import Held
from engine.observation import Observation
from engine.systems.hopper import Hopper
from policies import MLP
from training.objectives import Objective
from training.starts import policy_for, uniform_states
from training.task import Task

# A body lower than this, in metres, or turned by more, in radians, has fallen.
_LOWEST, _TURNED = 0.25, 2.0
# Where it begins to cost how near to a fall the last state is, and how much: where the body has fallen at least 2, more
# than standing still to the end would, so that it never pays to fall.
_LOW, _TURNING, _FALL = 0.35, 1.0, 2.0
# Where a standing hopper's body is, and how far from there and how fast it starts.
_STANDING, _AROUND, _SPEED = 0.4755, 0.02, 0.1


class Forward(Objective):
    """The body's departure from a speed v, from upright and from its height, and what it takes; more where it falls.

        ℓ_t = ((ẋ/v - 1)² + 0.1 φ² + 10 (y - 0.5)² + rc mean(u²)) / T,
        ℓ_T = 2 max(0, (0.35 - y)/0.1)² + 2 max(0, |φ| - 1)²

    Args:
        speed: v, m/s; horizon: T; regularisation: rc.
    """

    def __init__(self, speed: float, horizon: int, regularisation: float):
        self.speed, self.horizon, self.regularisation = speed, horizon, regularisation

    def running(self, states, controls, steps):
        away = (states[..., 5] / self.speed - 1.0).square() + 0.1 * states[..., 2].square()
        away = away + 10.0 * (states[..., 1] - 0.5).square()
        return (away + self.regularisation * controls.square().mean(-1)) / self.horizon

    def final(self, state):
        low = (_LOW - state[..., 1]).clamp(min=0.0) / (_LOW - _LOWEST)
        turned = (state[..., 2].abs() - _TURNING).clamp(min=0.0) / (_TURNED - _TURNING)
        return _FALL * (low.square() + turned.square())


def fallen(states: torch.Tensor) -> torch.Tensor:
    """Whether a body has fallen, for states [B, 10]."""
    return (states[..., 1] < _LOWEST) | (states[..., 2].abs() > _TURNED)


class Gait(NamedTuple):
    """How samples went until their ends, each [B].

    Attributes:
        flight: share of the steps after which the foot was in the air, more than twice the ground's softness above it,
            where that carries less than an eighth of the weight.
        touchdowns: how often a step in the air was followed by one on the ground.
        speed: of the body on the whole, m/s.
    """

    flight: torch.Tensor
    touchdowns: torch.Tensor
    speed: torch.Tensor


def gait(states: torch.Tensor, ends: torch.Tensor, seconds: float, softness: float) -> Gait:
    """How samples went.

    Args:
        states: of a rollout [T+1, B, 10]; after its end a sample stays as it is.
        ends: the steps [B], from 1 to T, after which they ended.
        seconds: of a step; softness: ε of the ground, m.
    """
    steps = torch.arange(1, len(states), device=states.device).unsqueeze(1)
    up = states[..., 4] > 2.0 * softness
    flight = (up[1:] & (steps <= ends)).sum(0) / ends
    touchdowns = (up[:-1] & ~up[1:]).sum(0).to(states)
    return Gait(flight, touchdowns, (states[-1, :, 0] - states[0, :, 0]) / (ends * seconds))


def _felt(states: torch.Tensor, steps: torch.Tensor, parameters: Any) -> torch.Tensor:
    """Height, pitch, the foot seen from the body, its height, and all velocities: all but the place."""
    x, y, pitch, p, q = states[..., :5].unbind(-1)
    return torch.cat([torch.stack([y, pitch, p - x, q - y, q], -1), states[..., 5:]], -1)


@dataclass(frozen=True)
class HopperOptions:
    """Hop forward on one leg at a speed, for as long as the body does not fall; the ground gives way and rubs."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("horizon", (25, 50, 100))

    horizon: int = 50
    """Steps of the controller, each of 0.02 s: ten of physics."""
    speed: Annotated[float, tyro.conf.arg(name="wanted-speed")] = 0.5
    """How fast to go, m/s."""
    stiffness: float = 1000.0
    """Of the ground, N/m: a standing hopper sinks 10 mm; contact is blurred over as much."""
    regularisation: float = 0.001
    """Weight rc of the mean squared control."""

    def build(self) -> Task:
        whole("a horizon of at least 1 step", self.horizon)
        positive("a speed above 0", self.speed)
        not_negative("a regularisation of at least 0", self.regularisation)
        positive("a stiffness above 0", self.stiffness)
        system = Held(Hopper(stiffness=self.stiffness, softness=10.0 / self.stiffness, damping=10.0), 10)
        place = (0.0, _STANDING, 0.0, 0.0, 0.0)
        low, high = ((*(x + side * _AROUND for x in place[:4]), 0.0, *[side * _SPEED] * 5) for side in (-1, 1))
        observation = Observation(_felt, (10,))
        make = policy_for(system, MLP, observation, hidden=(64, 64), zero_last=True)
        objective = Forward(self.speed, self.horizon, self.regularisation)
        return Task("hopper", system, objective, uniform_states(low, high), self.horizon, make, success=0.3,
                    observation=observation, end=fallen, control_bounds=(-2.0, 2.0))  # fmt: skip

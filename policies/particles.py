"""Policies for particles: each actuator sees its own particle and a summary of the crowd, in whatever order and number.

States [2·dim, N] hold a row for each coordinate of all positions, then of all velocities. Some particles are actuators,
with one column of the control [rows, actuators] each; the others are the crowd. All actuators share one network, so a
policy is invariant to the order of the crowd, and what it gives follows the order of the actuators. Nothing in it
depends on N: `resized` runs the same parameters with other particles.
"""

import abc
from collections.abc import Sequence
from typing import Any

import torch

from policies.checks import check_draw, is_size, numbers, places, shape, sizes
from policies.network import Network
from policies.policy import Policy, PolicyError

# Below any spread that matters; gives the spread of one particle, or of coincident ones, the derivative 0.
_TINY = 1e-12


class ParticlePolicy(Policy):
    """u_a = f(own particle of a, the mean of all actuators seen from a, a summary of the crowd).

    Args:
        state_shape: (2·dim, N).
        control_shape: (rows, actuators).
        parameter_count: as in `Policy`.
        actuators: which particles the columns of the control belong to; by default the first ones. Where all
            particles are actuators, they are the crowd too.
        members, dtype, device: as in `Policy`.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        parameter_count: int,
        actuators: Sequence[int] | None,
        members: int,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ):
        _, particles, _, count = _sizes(state_shape, control_shape)
        super().__init__(state_shape, control_shape, parameter_count, members, dtype, device)
        self.actuators = (
            tuple(range(count)) if actuators is None else places("actuators as places of particles", actuators)
        )
        distinct = len(set(self.actuators)) == count == len(self.actuators)
        if not distinct or not all(0 <= a < particles for a in self.actuators):
            raise PolicyError(f"Expected {count} different actuators below {particles}, got {list(self.actuators)}.")
        chosen = set(self.actuators)
        crowd = [k for k in range(particles) if k not in chosen] or list(range(particles))
        self._own, self._crowd = _choice(self.actuators, self.device), _choice(crowd, self.device)

    @property
    def architecture(self) -> dict[str, Any]:
        return {**super().architecture, "actuators": list(self.actuators), **self._settings()}

    @abc.abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What it was built with besides shapes and actuators, by name, as plain values."""

    def resized(self, particles: int) -> "ParticlePolicy":
        """This policy, with the very same parameters, for that many particles; the crowd is what changes."""
        if not is_size(particles) or particles <= max(self.actuators):
            raise PolicyError(f"Expected more than {max(self.actuators)} particles, got {particles!r}.")
        other = type(self)(
            (self.state_shape[0], particles), self.control_shape, **self._settings(), actuators=self.actuators,
            members=self.members, dtype=self.dtype, device=self.device,
        )  # fmt: skip
        other.theta = self.theta
        return other

    def _decide(self, head: Network, own: torch.Tensor, *seen: torch.Tensor) -> torch.Tensor:
        """Controls of actuators with states own [P, b, 2·dim, A] and features [P, b, f, A or 1]."""
        fellows = own.mean(3, keepdim=True) - own
        features = torch.cat([own, fellows, *(one.expand(-1, -1, -1, own.shape[3]) for one in seen)], dim=2)
        rows = features.transpose(2, 3).flatten(1, 2)
        return head(self.theta, rows).unflatten(1, (own.shape[1], own.shape[3])).transpose(2, 3)

    @torch.no_grad()
    def _draw(self, member: int, generator: torch.Generator, networks: Sequence[Network], zero_last: bool) -> None:
        check_draw(member, self.members, generator)
        row = self.theta[member : member + 1]
        for index, network in enumerate(networks):
            network.initialise(row, generator, zero_last and index == len(networks) - 1)


class Moments(ParticlePolicy):
    """u_a = MLP(own state, fellows, crowd's mean seen from a, crowd's spread, crowd's quantiles seen from a).

        mean m = Σ_k s_k / E,   spread = √(Σ_k (s_k - m)² / E + 10⁻¹²),   for each row of the state
        quantile q = the value at place q (E - 1) of the sorted positions, linear between two, for each axis

    Args:
        state_shape: (2·dim, N); control_shape: (rows, actuators).
        quantiles: q, each from 0 to 1; none at all saves sorting.
        hidden: widths of the MLP's hidden layers.
        zero_last: start the MLP's last layer at zero, so that the first controls are 0.
        actuators: as in `ParticlePolicy`.
        members, dtype, device: as in `Policy`.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        hidden: Sequence[int] = (64, 64),
        zero_last: bool = False,
        actuators: Sequence[int] | None = None,
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.quantiles, self.zero_last = numbers("quantiles from 0 to 1", quantiles), zero_last
        self.hidden = sizes("hidden layers of at least 1 unit", hidden)
        if not all(0 <= q <= 1 for q in self.quantiles):
            raise PolicyError(f"Expected quantiles from 0 to 1, got {list(self.quantiles)}.")
        dim, _, rows, _ = _sizes(state_shape, control_shape)
        self._head = Network((8 * dim + dim * len(self.quantiles), *self.hidden, rows))
        super().__init__(state_shape, control_shape, self._head.stop, actuators, members, dtype, device)
        self._dim = dim
        self._places, self._weights = self._quantile_places()

    def _settings(self) -> dict[str, Any]:
        return {"quantiles": list(self.quantiles), "hidden": list(self.hidden), "zero_last": self.zero_last}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        own, crowd = state[..., self._own], state[..., self._crowd]
        mean = crowd.mean(3, keepdim=True)
        spread = ((crowd - mean).square().mean(3, keepdim=True) + _TINY).sqrt()
        seen = [mean - own, spread]
        if self.quantiles:
            ordered = crowd[..., : self._dim, :].sort(dim=3).values
            around = ordered[..., self._places].unflatten(3, (2, -1))
            values = torch.lerp(around[..., 0, :], around[..., 1, :], self._weights.to(around))
            seen.append((values.unsqueeze(4) - own[..., : self._dim, :].unsqueeze(3)).flatten(2, 3))
        return self._decide(self._head, own, *seen)

    def initialise(self, member: int, generator: torch.Generator) -> None:
        self._draw(member, generator, [self._head], self.zero_last)

    def _quantile_places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Places below and above each quantile in the sorted crowd, and how far it is from one to the other."""
        crowd = self._crowd
        count = crowd.stop - crowd.start if isinstance(crowd, slice) else len(crowd)
        place = torch.tensor(self.quantiles, dtype=torch.float64, device=self.device) * (count - 1)
        below = place.floor().clamp(max=max(0, count - 2))
        pair = torch.cat([below, (below + 1).clamp(max=count - 1)]).long()
        return pair, place - below  # in float64, whatever the policy becomes later


class DeepSets(ParticlePolicy):
    """u_a = ρ(own state, fellows, Σ_k φ(s_k) / E): a network φ for each particle of the crowd, pooled; ρ decides.

    φ sees particles as the state has them and not from each actuator, so that it runs once for each particle.

    Source: Zaheer et al., Deep Sets (2017).

    Args:
        state_shape: (2·dim, N); control_shape: (rows, actuators).
        features: widths of φ's layers, tanh after all but the last.
        hidden: widths of ρ's hidden layers.
        zero_last: start ρ's last layer at zero, so that the first controls are 0.
        actuators: as in `ParticlePolicy`.
        members, dtype, device: as in `Policy`.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        features: Sequence[int] = (16, 16),
        hidden: Sequence[int] = (64,),
        zero_last: bool = False,
        actuators: Sequence[int] | None = None,
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.features = sizes("layers of at least 1 feature", features)
        self.hidden, self.zero_last = sizes("hidden layers of at least 1 unit", hidden), zero_last
        if not self.features:
            raise PolicyError("Expected at least 1 layer of features, got none.")
        dim, _, rows, _ = _sizes(state_shape, control_shape)
        self._embed = Network((2 * dim, *self.features))
        self._head = Network((4 * dim + self.features[-1], *self.hidden, rows), self._embed.stop)
        super().__init__(state_shape, control_shape, self._head.stop, actuators, members, dtype, device)

    def _settings(self) -> dict[str, Any]:
        return {"features": list(self.features), "hidden": list(self.hidden), "zero_last": self.zero_last}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        own, crowd = state[..., self._own], state[..., self._crowd]
        rows = crowd.transpose(2, 3).flatten(1, 2)
        pooled = self._embed(self.theta, rows).unflatten(1, (crowd.shape[1], crowd.shape[3])).mean(2)
        return self._decide(self._head, own, pooled.unsqueeze(3))

    def initialise(self, member: int, generator: torch.Generator) -> None:
        self._draw(member, generator, [self._embed, self._head], self.zero_last)


def _sizes(state_shape: Sequence[int], control_shape: Sequence[int]) -> tuple[int, int, int, int]:
    """dim, particles, rows of the control, actuators."""
    state, control = shape("state shape", state_shape), shape("control shape", control_shape)
    if len(state) != 2 or state[0] % 2 or state[0] < 2 or state[1] < 1:
        raise PolicyError(f"Expected states of particles, of shape [2·dim, N], got {list(state)}.")
    if len(control) != 2 or min(control) < 1:
        raise PolicyError(f"Expected controls of actuators, of shape [rows, actuators], got {list(control)}.")
    return state[0] // 2, state[1], control[0], control[1]


def _choice(indices: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    """`indices` as what a tensor is indexed with: a slice, which copies nothing, where they are consecutive."""
    first, last = indices[0], indices[-1]
    if list(indices) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(indices, device=device)

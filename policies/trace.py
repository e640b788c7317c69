"""Traces: what a policy keeps of some steps of a rollout, so that it can be differentiated along it."""

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from policies.slots import aligned, aligned_rows, on_cpu

if TYPE_CHECKING:
    from policies.convolutional import Convolutional
    from policies.mlp import MLP
    from policies.policy import Policy


class PolicyTrace(abc.ABC):
    """What a policy keeps of some consecutive time slots of a rollout; used as the engine's `ControllerTrace`.

    Attributes:
        theta: a copy of the parameters [P, n] that the trace computes with, renewed before every rollout; None if it
            reads the policy's own.
        reads_policy: whether it asks the policy each time, and so sees parameters that were put in another place.
    """

    theta: torch.Tensor | None = None
    reads_policy: bool = False

    @abc.abstractmethod
    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Callable[[], None]:
        """A call that writes `control` = π(state) and keeps in `slot` what differentiation needs."""

    @abc.abstractmethod
    def linearise(
        self, first: int, last: int, states: torch.Tensor, samples: slice, jacobian: torch.Tensor | None
    ) -> None:
        """Write K of the slots [first, last) into `jacobian` [last - first, B, m, n], if it is asked for."""

    @abc.abstractmethod
    def pull_back_state(self, slot: int, state: torch.Tensor, cotangent: torch.Tensor, samples: slice) -> torch.Tensor:
        """Kᵀ μ of one slot."""

    @abc.abstractmethod
    def pull_back_parameters(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradient: torch.Tensor,
    ) -> None:
        """Add Σ Πᵀ μ of the slots [first, last) to `gradient` [P, n]."""


class AutogradTrace(PolicyTrace):
    """A trace that keeps nothing and differentiates `policy.forward` by torch autograd where asked."""

    reads_policy = True

    def __init__(self, policy: "Policy", batch: int):
        self.policy, self.members = policy, policy.members
        self.batch_per_member = batch // policy.members

    def controls(self, states: torch.Tensor) -> torch.Tensor:
        """[P, rows, *control_shape] of states [P, rows, *state_shape]."""
        return self.policy(states)

    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Callable[[], None]:
        controls = self.controls
        grouped = state.detach().view(self.members, self.batch_per_member, *self.policy.state_shape)
        out = control.view(self.members, self.batch_per_member, *self.policy.control_shape)

        def act() -> None:
            out.copy_(controls(aligned(grouped)))

        return act

    def linearise(
        self, first: int, last: int, states: torch.Tensor, samples: slice, jacobian: torch.Tensor | None
    ) -> None:
        if jacobian is None:
            return
        with torch.inference_mode(False), torch.enable_grad():
            inputs = self._member_major(states).clone().requires_grad_()
            controls = self.controls(inputs).flatten(2)
            rows = jacobian.view(last - first, self.members, self.batch_per_member, *jacobian.shape[2:])
            for c in range(controls.shape[2]):
                gradient = _gradient(controls[:, :, c].sum(), inputs, retain_graph=True)
                rows[:, :, :, c].copy_(self._time_major(gradient, last - first).flatten(3))

    def pull_back_state(self, slot: int, state: torch.Tensor, cotangent: torch.Tensor, samples: slice) -> torch.Tensor:
        # Every member is evaluated, so that a member's rows see the same shapes whoever else is swept.
        with torch.inference_mode(False), torch.enable_grad():
            shape = (self.members, self.batch_per_member)
            inputs = state.new_zeros(shape[0] * shape[1], *self.policy.state_shape)
            inputs[samples] = state
            inputs = inputs.view(*shape, *self.policy.state_shape).requires_grad_()
            weights = state.new_zeros(shape[0] * shape[1], *self.policy.control_shape)
            weights[samples] = cotangent
            controls = self.controls(inputs)
            return _gradient(controls, inputs, weights.view_as(controls)).flatten(0, 1)[samples]

    def pull_back_parameters(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradient: torch.Tensor,
    ) -> None:
        theta = self.policy.theta
        if not theta.requires_grad:
            return
        chosen = slice(samples.start // self.batch_per_member, samples.stop // self.batch_per_member)
        with torch.inference_mode(False), torch.enable_grad():
            controls = self.controls(self._member_major(states).clone())
            found = _gradient(controls, theta, self._member_major(cotangents).view_as(controls))
            gradient[chosen] += found[chosen]

    def _member_major(self, rows: torch.Tensor) -> torch.Tensor:
        """[S, P·b, ...] as [P, S·b, ...]."""
        return rows.unflatten(1, (self.members, self.batch_per_member)).transpose(0, 1).flatten(1, 2)

    def _time_major(self, rows: torch.Tensor, steps: int) -> torch.Tensor:
        """[P, S·b, ...] as [S, P, b, ...]."""
        return rows.unflatten(1, (steps, self.batch_per_member)).transpose(0, 1)


class LayeredTrace(PolicyTrace):
    """A trace of a policy whose parameters are layers, with buffers [P, slots, b, ...] of its own, member-major.

    Attributes:
        members, rows: P and b.
        apart: whether products of several members are computed in a buffer and then copied to their slot, whose rows
            are not contiguous: several times faster on a CPU.
        layers: views of `theta`, as `policy.layers` gives them.
    """

    def __init__(self, policy: "MLP | Convolutional", batch: int):
        self.members, self.rows = policy.members, batch // policy.members
        self.theta = aligned_rows(policy.theta.detach())
        self.apart = self.members > 1 and on_cpu(self.theta)
        self.layers = policy.layers(self.theta)
        self._held: slice | None = None
        self._scratch: dict[str, torch.Tensor] = {}

    def _keeps(self, members: slice) -> bool:
        """Whether `linearise` has kept gradients of these members."""
        held = self._held
        return held is not None and held.start <= members.start and members.stop <= held.stop

    def _members(self, samples: slice) -> slice:
        return slice(samples.start // self.rows, samples.stop // self.rows)

    def _slots(self, buffer: torch.Tensor, first: int, last: int, members: slice) -> torch.Tensor:
        """Slots [first, last) of a buffer as [P, rows, ...]; a view."""
        return buffer[members, first:last].flatten(1, 2)

    def _member_major(self, values: torch.Tensor, members: slice) -> torch.Tensor:
        """[S, P·b, ...] as [P, S·b, flat] for the chosen members."""
        grouped = values.reshape(values.shape[0], self.members, self.rows, -1)[:, members]
        return grouped.transpose(0, 1).flatten(1, 2)

    def _buffer(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        # One flat buffer serves every shape of a name: blocks at the edges of segments are shorter.
        size = math.prod(shape)
        if name not in self._scratch or self._scratch[name].numel() < size:
            self._scratch[name] = self.layers[0].new_zeros(size)
        return self._scratch[name][:size].view(shape)


def _gradient(
    value: torch.Tensor, leaf: torch.Tensor, weights: torch.Tensor | None = None, retain_graph: bool = False
) -> torch.Tensor:
    """The gradient of `value` at `leaf`, zero where none of it depends on it."""
    if not value.requires_grad:
        return torch.zeros_like(leaf, requires_grad=False)
    (found,) = torch.autograd.grad(
        value, leaf, weights, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return found

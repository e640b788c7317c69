"""Policies: torch modules that map states to controls, with a member axis for ensembles.

A policy holds P members of one architecture. Its parameters are one flat tensor `theta` [P, n], so that an
ensemble's gradients, optimiser state, clipping and checkpoints are rows of one matrix.
"""

import abc
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from policies.checks import PolicyError, shape, size


class PolicyRecord(abc.ABC):
    """What a policy keeps of some consecutive time slots of a rollout; used as the engine's `ControllerRecord`."""

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


class Policy(nn.Module, abc.ABC):
    """u = π_θ(x) for P members at once.

    Args:
        state_shape, control_shape: shapes of one sample's state and control.
        parameter_count: n, parameters of one member.
        members: P.
        dtype, device: of the parameters.

    Attributes:
        theta: [P, n], an `nn.Parameter`.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        parameter_count: int,
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        members = size("a policy with at least 1 member", members)
        self.state_shape, self.control_shape = shape("state shape", state_shape), shape("control shape", control_shape)
        self.theta = nn.Parameter(torch.zeros(members, parameter_count, dtype=dtype, device=device))

    @property
    def members(self) -> int:
        return self.theta.shape[0]

    @property
    def parameter_count(self) -> int:
        return self.theta.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.theta.dtype

    @property
    def device(self) -> torch.device:
        return self.theta.device

    @abc.abstractmethod
    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Controls [P, b, *control_shape] of states [P, b, *state_shape], differentiable by torch."""

    @abc.abstractmethod
    def initialise(self, member: int, generator: torch.Generator) -> None:
        """Draw the initial parameters of one member, in float64 on the CPU so that precisions agree."""

    def record(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> PolicyRecord:
        """Buffers in which the engine keeps what differentiation along a rollout needs."""
        self.check_fit(state_shape, control_shape)
        return AutogradRecord(self, batch)

    def record_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        """Bytes of one slot of a record."""
        return 0

    def scratch_bytes(self, rows: int) -> int:
        """Bytes that a record takes while it linearises or pulls back this many rows.

        Found by counting what autograd saves for one row more; gradients of it take as much again.
        """
        per_row = self._saved_bytes(2) - self._saved_bytes(1)
        ends = math.prod(self.state_shape) + math.prod(self.control_shape)
        return rows * (2 * per_row + 3 * ends * self.theta.element_size()) // self.members

    def _saved_bytes(self, rows: int) -> int:
        saved: dict[int, int] = {}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        state = self.theta.new_zeros(self.members, rows, *self.state_shape).requires_grad_()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            self(state)
        return sum(saved.values())

    def check_fit(self, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> None:
        """PolicyError unless states and controls of these shapes are what the policy maps."""
        if tuple(state_shape) != self.state_shape:
            raise PolicyError(
                f"Expected a policy for states of shape {list(state_shape)}, got one for {list(self.state_shape)}."
            )
        with torch.no_grad():
            probe = self(torch.zeros(self.members, 1, *state_shape, dtype=self.theta.dtype, device=self.theta.device))
        expected = (self.members, 1, *control_shape)
        if tuple(probe.shape) != expected:
            raise PolicyError(
                f"Expected policy output of shape {list(expected)} (members, batch, control), got {list(probe.shape)}."
            )
        if probe.dtype != self.theta.dtype:
            raise PolicyError(f"Expected policy output as {self.theta.dtype}, got {probe.dtype}.")


class AutogradRecord(PolicyRecord):
    """A record that keeps nothing and differentiates `policy.forward` by torch autograd where asked."""

    def __init__(self, policy: Policy, batch: int):
        self.policy, self.members = policy, policy.members
        self.batch_per_member = batch // policy.members

    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Callable[[], None]:
        policy = self.policy
        grouped = state.detach().view(self.members, self.batch_per_member, *policy.state_shape)
        out = control.view(self.members, self.batch_per_member, *policy.control_shape)

        def act() -> None:
            out.copy_(policy(grouped))

        return act

    def linearise(
        self, first: int, last: int, states: torch.Tensor, samples: slice, jacobian: torch.Tensor | None
    ) -> None:
        if jacobian is None:
            return
        with torch.inference_mode(False), torch.enable_grad():
            inputs = self._member_major(states).clone().requires_grad_()
            controls = self.policy(inputs).flatten(2)
            rows = jacobian.view(last - first, self.members, self.batch_per_member, *jacobian.shape[2:])
            for c in range(controls.shape[2]):
                (gradient,) = torch.autograd.grad(controls[:, :, c].sum(), inputs, retain_graph=True)
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
            controls = self.policy(inputs)
            (gradient,) = torch.autograd.grad(controls, inputs, weights.view_as(controls))
            return gradient.flatten(0, 1)[samples]

    def pull_back_parameters(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradient: torch.Tensor,
    ) -> None:
        chosen = slice(samples.start // self.batch_per_member, samples.stop // self.batch_per_member)
        with torch.inference_mode(False), torch.enable_grad():
            controls = self.policy(self._member_major(states).clone())
            (found,) = torch.autograd.grad(
                controls, self.policy.theta, self._member_major(cotangents).view_as(controls)
            )
            gradient[chosen] += found[chosen]

    def _member_major(self, rows: torch.Tensor) -> torch.Tensor:
        """[S, P·b, ...] as [P, S·b, ...]."""
        return rows.unflatten(1, (self.members, self.batch_per_member)).transpose(0, 1).flatten(1, 2)

    def _time_major(self, rows: torch.Tensor, steps: int) -> torch.Tensor:
        """[P, S·b, ...] as [S, P, b, ...]."""
        return rows.unflatten(1, (steps, self.batch_per_member)).transpose(0, 1)

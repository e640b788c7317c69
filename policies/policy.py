"""Policies: torch modules that map states to controls, with a member axis for ensembles.

A policy holds P members of one architecture. Its parameters are one flat tensor `theta` [P, n], so that an
ensemble's gradients, optimiser state, clipping and checkpoints are rows of one matrix.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from policies.behaviour import check_behaviour, check_fit
from policies.checks import PolicyError, shape, size
from policies.slots import aligned
from policies.watch import Watch

__all__ = ["AutogradTrace", "Policy", "PolicyError", "PolicyTrace"]


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
        if parameter_count < 1:
            raise PolicyError(f"Expected a policy with at least 1 parameter, got {parameter_count}.")
        self.state_shape, self.control_shape = shape("state shape", state_shape), shape("control shape", control_shape)
        with torch.inference_mode(False):
            self.theta = nn.Parameter(torch.zeros(members, parameter_count, dtype=dtype, device=device))

    def __init_subclass__(cls, **options: Any):
        """A policy written when traces were called records: its methods under the names of today."""
        super().__init_subclass__(**options)
        for name, before in (("trace", "record"), ("trace_bytes", "record_bytes")):
            if before in vars(cls) and name not in vars(cls):
                setattr(cls, name, vars(cls)[before])

    @property
    def architecture(self) -> dict[str, Any]:
        """Class and construction arguments as plain data, without members, dtype and device; see `policy_from`."""
        shapes = {"state_shape": list(self.state_shape), "control_shape": list(self.control_shape)}
        return {"class": type(self).__name__, **shapes}

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

    def trace(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> PolicyTrace:
        """Buffers in which the engine keeps what differentiation along a rollout needs."""
        self.check_fit(state_shape, control_shape)
        return AutogradTrace(self, batch)

    def bind(self) -> None:
        """Make `theta` what `forward` computes with, wherever parameters were put; PolicyError if that cannot be."""
        theta = self._parameters.get("theta")
        if theta is None or theta.dim() != 2:
            raise PolicyError(
                "Expected policy.theta to be an nn.Parameter [members, parameters], got one that was removed, reshaped "
                "or parametrised; parametrise the weights of a module and give that to ModulePolicy."
            )
        if theta.is_inference():
            make_usable(self)
            theta = self.theta
        if not theta.is_contiguous():  # members are trained in place, which memory shared within theta does not allow
            theta.data = theta.data.contiguous()

    def constants(self) -> dict[str, torch.Tensor]:
        """What `forward` computes with besides `theta`, by name: buffers and parameters that are not trained."""
        if not self._modules and not self._buffers and len(self._parameters) == 1:
            return {}
        values = {f"buffer {name!r}": value for name, value in self.named_buffers()}
        return values | {f"parameter {name!r}": value for name, value in self.named_parameters() if name != "theta"}

    def switches(self) -> tuple:
        """What switches the behaviour of a module: training mode and hooks."""
        return tuple(switches_of(part) for part in self.modules())

    def frozen(self) -> torch.Tensor | None:
        """Which parameters [n] have `requires_grad=False`: their gradient is 0 and no optimiser moves them."""
        if self.theta.requires_grad:
            return None
        return torch.ones(self.parameter_count, dtype=torch.bool, device=self.device)

    def check(self, state_shape: tuple[int, ...], control_shape: tuple[int, ...], differentiated: bool) -> None:
        """PolicyError unless this is a differentiable function of each sample's own state, of these shapes.

        Found out by calling it on a few random states; only `differentiated` policies need derivatives.
        """
        self.check_fit(state_shape, control_shape)
        self.check_behaviour(differentiated)

    def check_behaviour(self, differentiated: bool) -> None:
        """`check` without the shapes."""
        make_usable(self)
        for name, parameter in self.named_parameters():
            if name != "theta" and parameter.requires_grad:
                raise PolicyError(
                    f"Expected policy.theta to hold all that is trained, got a parameter {name!r} besides it; set "
                    "requires_grad=False there, or give the module to ModulePolicy."
                )
        check_behaviour(self, differentiated)

    def watch(self, trace: Any, differentiated: bool) -> Watch:
        """What keeps a `trace` of this policy in step with it."""
        return Watch(self, trace, differentiated)

    def trace_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        """Bytes of one slot of a trace."""
        return 0

    record, record_bytes = trace, trace_bytes  # as they were called

    def scratch_bytes(self, rows: int) -> int:
        """Bytes that a trace takes while it linearises or pulls back this many rows.

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
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        ):
            self(state)
        return sum(saved.values())

    def check_fit(self, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> None:
        """PolicyError unless states and controls of these shapes are what the policy maps."""
        if tuple(state_shape) != self.state_shape:
            raise PolicyError(
                f"Expected a policy for states of shape {list(state_shape)}, got one for {list(self.state_shape)}."
            )
        self.bind()
        check_fit(self, tuple(control_shape))


class AutogradTrace(PolicyTrace):
    """A trace that keeps nothing and differentiates `policy.forward` by torch autograd where asked."""

    reads_policy = True

    def __init__(self, policy: Policy, batch: int):
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


def make_usable(module: nn.Module) -> None:
    """Replace what was made under `torch.inference_mode`, which autograd cannot use, by copies that it can."""
    fresh: dict[int, nn.Parameter] = {}
    with torch.inference_mode(False):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.is_inference():
                    copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    part._parameters[name] = fresh.setdefault(id(parameter), copied)
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()


def switches_of(module: nn.Module) -> tuple:
    """Training mode and numbers of hooks of one module, without its parts."""
    return module.training, len(module._forward_hooks), len(module._forward_pre_hooks)

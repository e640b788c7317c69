"""Policies: torch modules that map states to controls, with a member axis for ensembles.

A policy holds P members of one architecture. Its parameters are one flat tensor `theta` [P, n], so that an
ensemble's gradients, optimiser state, clipping and checkpoints are rows of one matrix.
"""

import abc
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from policies.alone import Alone
from policies.behaviour import check_behaviour, check_fit
from policies.checks import PolicyError, check_states, floating, index, shape, size
from policies.trace import AutogradTrace, PolicyTrace
from policies.watch import Watch

__all__ = ["AutogradTrace", "Policy", "PolicyError", "PolicyTrace"]


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
            zeros = torch.zeros(members, parameter_count, dtype=floating(dtype), device=device)
            self.theta = nn.Parameter(zeros)

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
        return {"class": class_name(self), **shapes}

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Controls of states, as `forward` gives them; PolicyError unless states are [P, b, *state_shape]."""
        if (
            len(args) == 1 and not kwargs and not self._forward_pre_hooks
        ):  # which may make states of what they are given
            check_states(args[0], self.members, self.state_shape)
        return super().__call__(*args, **kwargs)

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

    def module(self, member: int = 0) -> nn.Module:
        """One member as a torch module of its own, from [b, *state_shape] to [b, *control_shape]; a copy.

        Raises:
            PolicyError: a member that is not there.
        """
        self.bind()
        index(member, self.members)
        with torch.inference_mode(False), torch.no_grad():
            return self._alone(member).requires_grad_(False)

    def _alone(self, member: int) -> nn.Module:
        policy = copy.deepcopy(self)
        policy.theta = nn.Parameter(self.theta[member : member + 1].detach().clone())
        return Alone(policy)

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

    def take_constants(self, constants: Mapping[str, torch.Tensor]) -> None:
        """Compute with these `constants()` of another policy of this kind from now on.

        Raises:
            PolicyError: others than this policy has, or of other shapes.
        """
        own = self.constants()
        for name in own.keys() | constants.keys():
            one, other = own.get(name), constants.get(name)
            if one is None or other is None or one.shape != other.shape:
                raise PolicyError(f"Expected policies that compute with the same constants, got {name} of one alone.")
        with torch.inference_mode(False), torch.no_grad():
            for name, value in own.items():
                if value is not constants[name] and not torch.equal(value, constants[name].to(value)):
                    value.copy_(constants[name])

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


def class_name(policy: nn.Module) -> str:
    """As checkpoints know the class of a policy: by its name alone if it ships."""
    kind = type(policy)
    shipped = kind.__module__.startswith(f"{__package__}.")
    return kind.__name__ if shipped else f"{kind.__module__}.{kind.__qualname__}"


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

"""What the engine asks of a controller: to act step by step, and to be linearised along a rollout.

The engine never sees a network. A controller (a policy, anything that maps states to controls) hands out a
*trace*: buffers for a number of consecutive time slots, in which it keeps what it needs to be differentiated.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from engine.launch import Launch


class ControllerTrace(Protocol):
    """A controller's memory of some consecutive steps ("slots") of a rollout over B samples."""

    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Launch:
        """A launch that writes `control` = π(state) and keeps in `slot` what differentiation needs."""
        ...

    def linearise(
        self, first: int, last: int, states: torch.Tensor, samples: slice, jacobian: torch.Tensor | None
    ) -> None:
        """Write K = ∂π/∂x of the slots [first, last) into `jacobian` [last - first, B, m, n], flattened shapes.

        `states` are [last - first, B, *state_shape]. A row of K may depend on its own row alone, and to the bit:
        the engine calls with the same blocks of time whatever the memory budget. Only `samples` are needed.
        Called for every block of a segment before its pull-backs; `jacobian` None asks only for whatever they want.
        """
        ...

    def pull_back_state(self, slot: int, state: torch.Tensor, cotangent: torch.Tensor, samples: slice) -> torch.Tensor:
        """Kᵀ μ of one slot, for `state` and `cotangent` restricted to `samples`: [b, *state_shape]."""
        ...

    def pull_back_parameters(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradient: torch.Tensor,
    ) -> None:
        """Add Σ Πᵀ μ over the slots [first, last) and the samples to `gradient` [members, parameters].

        `states` are [last - first, B, *state_shape], `cotangents` [last - first, B, *control_shape]; rows of
        `gradient` whose members have no sample in `samples` are left alone.
        """
        ...


class InKernel(Protocol):
    """What acts inside a kernel of `engine/one_launch.py`.

    Attributes:
        act: an object that can be hashed, with two `ti.func`s that act on a group of `rows` samples from b on:
            `on_rows(read, write, states, controls, theta, memory, t, own, b, kept, skipped, rows)` on the CPU, where
            other groups have the first of them, as many as `skipped`, of which it keeps nothing; and for a block of
            `threads`, a power of two, that share `shared(rows)` numbers, `in_block(shared, theta, memory, own, kept,
            most, lane, rows)`, which keeps nothing of samples beyond b + `most`. The member's parameters begin at `own`
            in `theta`, which they take flat; what differentiation needs goes to the rows [member, slot, sample] of
            `memory`, which begin at `kept`.
        theta: [P, n or more], contiguous, rows that begin with the parameters it computes with; memory: one row of
            numbers.
        rows: samples of a member that are taken together, at most as many as a member has.
    """

    act: Any
    theta: torch.Tensor
    memory: torch.Tensor
    rows: int


class ActsInKernel(Protocol):
    """What a trace has besides where its controller's `acts_in_kernel(batch, in_blocks)` is true."""

    def in_kernel(self, in_blocks: bool) -> InKernel:
        """What does the same as `prepare_act`, for blocks of threads or for the CPU."""
        ...


@runtime_checkable
class PullsBackSamples(Protocol):
    """What a trace may have besides, if it can pull back every sample by itself faster than one after another."""

    def pull_back_samples(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradients: torch.Tensor,
    ) -> None:
        """Add each sample's Σ Πᵀ μ over the slots [first, last) to `gradients` [members, samples, parameters]."""
        ...


class ControllerWatch(Protocol):
    """Keeps one trace in step with its controller, whose parameters anyone may change between rollouts."""

    def begin(self) -> None:
        """Called before every forward rollout: from here on the trace computes with the controller as it is now."""
        ...

    def changed(self, equal: Callable[[torch.Tensor, torch.Tensor], bool]) -> str | None:
        """What is no longer as it was at `begin`, in words; None if nothing has changed.

        `equal` says of two tensors of one shape whether they are, or takes it for granted to ask later.
        """
        ...

    def frozen(self) -> torch.Tensor | None:
        """Which parameters [parameters] are not to be trained: their gradient is 0. None if all are."""
        ...


class Controller(Protocol):
    """A state-feedback controller with flat parameters, one row for each member of an ensemble."""

    @property
    def members(self) -> int: ...

    @property
    def parameter_count(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def check(self, state_shape: tuple[int, ...], control_shape: tuple[int, ...], differentiated: bool) -> None:
        """Raise unless it maps states of this shape to such controls, each sample's by itself and without memory.

        Only what is to be `differentiated` needs derivatives.
        """
        ...

    def watch(self, trace: ControllerTrace, differentiated: bool) -> ControllerWatch:
        """What keeps `trace` in step with the controller; asked for once."""
        ...

    def trace(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> ControllerTrace: ...

    def trace_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        """Bytes that one slot of a trace takes, for planning."""
        ...

    def scratch_bytes(self, rows: int) -> int:
        """Bytes that a trace needs while it linearises or pulls back this many rows, for planning."""
        ...

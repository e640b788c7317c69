"""A controller that sees an observation of the state, as a controller of the state: K and Kᵀμ go through O."""

import math
from typing import Any

import torch

from engine.alignment import aligned
from engine.controller import Controller, ControllerTrace, ControllerWatch, PullsBackSamples
from engine.launch import Launch
from engine.observation import Observation, pulled_back
from engine.parameters import SampleParameters

# What Python keeps of a slot: a closure and its views.
_SLOT_BYTES = 2500


class Clock:
    """Which step of the rollout lies in slot 0 of the buffers; set whenever a segment is computed."""

    base: int = 0


class Observed:
    """π ∘ O for a controller π; its Jacobian by the state is ∂π/∂o ∂O/∂x.

    Args:
        controller: π, of observations.
        observation: O.
        parameters: those that vary between samples, or None.
        clock: tells the step of a slot.
    """

    members: int
    parameter_count: int
    dtype: torch.dtype
    device: torch.device

    def __init__(
        self, controller: Controller, observation: Observation, parameters: SampleParameters | None, clock: Clock
    ):
        self.controller, self.observation = controller, observation
        self.parameters, self.clock = parameters, clock

    def __getattr__(self, name: str) -> Any:
        if name == "controller":  # of a copy that is still empty
            raise AttributeError(name)
        return getattr(self.controller, name)

    def check(self, state_shape: tuple[int, ...], control_shape: tuple[int, ...], differentiated: bool) -> None:
        self.controller.check(self.observation.shape, control_shape, differentiated)

    def trace(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> "ObservedTrace":
        of_controller = self.controller.trace(slots, batch, self.observation.shape, control_shape)
        kind = ObservedSamplesTrace if isinstance(of_controller, PullsBackSamples) else ObservedTrace
        return kind(self, of_controller, slots, batch)

    def watch(self, trace: Any, differentiated: bool) -> ControllerWatch:
        return self.controller.watch(trace.of_controller, differentiated)

    def trace_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        numbers = batch * math.prod(self.observation.shape)
        own = numbers * self.controller.dtype.itemsize + _SLOT_BYTES
        return own + self.controller.trace_bytes(batch, self.observation.shape, control_shape)

    def scratch_bytes(self, rows: int) -> int:
        # K of the observation and twice the observation's gradients.
        numbers = rows * math.prod(self.observation.shape) * 12
        return numbers * self.controller.dtype.itemsize + self.controller.scratch_bytes(rows)


class ObservedTrace:
    """A controller's memory of some slots, with what it saw in them.

    Attributes:
        of_controller: the trace of the controller itself.
        seen: [slots, B, *shape], observations.
    """

    def __init__(self, of: Observed, of_controller: ControllerTrace, slots: int, batch: int):
        shape, controller = of.observation.shape, of.controller
        self.of, self.of_controller, self.batch = of, of_controller, batch
        self.seen = torch.zeros(slots, batch, *shape, dtype=controller.dtype, device=controller.device)

    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Launch:
        act, seen, states = self.of_controller.prepare_act(slot, self.seen[slot], control), self.seen[slot], state[None]
        states = states.detach()

        def launch() -> None:
            seen.copy_(self._see(slot, slot + 1, states)[0])
            act()

        return launch

    def linearise(
        self, first: int, last: int, states: torch.Tensor, samples: slice, jacobian: torch.Tensor | None
    ) -> None:
        seen = self.seen[first:last]
        if jacobian is None:
            self.of_controller.linearise(first, last, seen, samples, None)
            return
        controls = jacobian.shape[2]
        with torch.inference_mode(False):  # a controller may write to it in any mode
            of_seen = self.seen.new_zeros(*seen.shape[:2], controls, math.prod(seen.shape[2:]))
        self.of_controller.linearise(first, last, seen, samples, of_seen)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = states.detach().clone().requires_grad_()
            found = self._see(first, last, leaf)
            for c in range(controls):
                weights = of_seen[:, :, c].clone().view_as(found)
                (gradient,) = pulled_back(found, (leaf,), weights, again=True)
                jacobian[:, :, c] = gradient.flatten(2)

    def pull_back_state(self, slot: int, state: torch.Tensor, cotangent: torch.Tensor, samples: slice) -> torch.Tensor:
        weights = self.of_controller.pull_back_state(slot, self.seen[slot, samples], cotangent, samples)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = state.detach().clone()[None].requires_grad_()
            found = self._see(slot, slot + 1, leaf, samples)
            (gradient,) = pulled_back(found, (leaf,), weights.clone()[None].view_as(found))
        return gradient[0]

    def pull_back_parameters(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradient: torch.Tensor,
    ) -> None:
        self.of_controller.pull_back_parameters(first, last, self.seen[first:last], cotangents, samples, gradient)

    def pull_back_rows(
        self, first: int, last: int, states: torch.Tensor, cotangents: torch.Tensor, samples: slice
    ) -> torch.Tensor:
        """Σ_t (∂O/∂p)ᵀ (∂π/∂o)ᵀ μ_t over the slots [first, last): [b, q] for the parameters that vary."""
        assert self.of.parameters is not None
        with torch.inference_mode(False), torch.enable_grad():
            rows = self.of.parameters.rows[samples].expand(last - first, -1, -1).clone().requires_grad_()
            found = self._see(first, last, states[:, samples].detach().clone(), samples, rows)
        if not found.requires_grad:
            return torch.zeros_like(rows[0], requires_grad=False)
        seen, pull_back = self.seen[:, samples], self.of_controller.pull_back_state
        weights = torch.stack([
            pull_back(slot, seen[slot], cotangents[slot - first, samples], samples).clone()
            for slot in range(first, last)
        ])  # fmt: skip
        with torch.inference_mode(False), torch.enable_grad():
            (gradient,) = pulled_back(found, (rows,), weights.clone().view_as(found))
        silent = (cotangents[: last - first, samples] == 0).flatten(2).all(2)
        return gradient.masked_fill(silent.unsqueeze(2), 0.0).sum(0)

    def _see(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        samples: slice = slice(None),
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """O at the states [last - first, b, ...] of these slots."""
        base, parameters = self.of.clock.base, self.of.parameters
        steps = torch.arange(base + first, base + last, device=states.device)
        named = {}
        if parameters is not None:
            rows = parameters.rows[samples].expand(last - first, -1, -1) if rows is None else rows
            named = parameters.named(rows)
        return self.of.observation(aligned(states), steps, named)


class ObservedSamplesTrace(ObservedTrace):
    """One whose controller's trace pulls back every sample by itself at once."""

    def pull_back_samples(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradients: torch.Tensor,
    ) -> None:
        assert isinstance(self.of_controller, PullsBackSamples)
        self.of_controller.pull_back_samples(first, last, self.seen[first:last], cotangents, samples, gradients)

"""Trajectories: T steps of a system under a controller, in buffers allocated once, cut into segments if asked."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from engine import plan as planning
from engine import runtime
from engine.available import check_available
from engine.buffers import SweepBuffers
from engine.checks import flag, whole
from engine.contracts import check_controller, check_cost, check_fit, check_system, check_tensor, modified
from engine.controller import Controller
from engine.ends import End
from engine.errors import AdjointError
from engine.finiteness import Finiteness
from engine.memory import parse_bytes, return_freed_memory
from engine.modes import plain_torch
from engine.noise import Noise
from engine.observation import Observation
from engine.one_launch import OneLaunch, offered
from engine.parts import Parts
from engine.plan import MemoryPlan, Segment
from engine.step_launches import StepLaunches
from engine.system import STEP_LAUNCH_BYTES, System

# Rows that are linearised together: enough to fill a matrix product, few enough to stay in cache.
_BLOCK_ROWS = 2**14
_BLOCK_BYTES = 4 * 2**20
_BLOCK_STEPS = 512
# Steps that an evaluation computes in one launch and then forgets.
_PASSING_STEPS = 128
# Beyond these sizes one policy pull-back per step is cheaper than all of K.
_JACOBIAN_CONTROLS = 8
_JACOBIAN_ELEMENTS = 2**18
# What Python keeps of a slot's launches and tensors, beside what system and controller say that theirs take.
_LAUNCH_BYTES = 2000


class Cost(Protocol):
    """Costs as torch expressions; training.Objective is the class to derive from."""

    def running(self, states: torch.Tensor, controls: torch.Tensor, steps: torch.Tensor) -> torch.Tensor | None:
        """ℓ_t(x_t, u_t) [S, B] for states [S, B, ...], controls [S, B, ...] at the times `steps` [S], or None."""
        ...

    def final(self, state: torch.Tensor) -> torch.Tensor | None:
        """ℓ_T(x_T) [B], or None."""
        ...


class Trajectory:
    """x_{t+1} = S(x_t, u_t), u_t = π(x_t) for t = 0..T-1, with every buffer allocated once.

    Args:
        system: the physics.
        controller: the policy, with P members; samples [p·b, (p+1)·b) belong to member p.
        horizon: T, steps.
        batch: B = P·b, samples.
        memory: budget of all buffers, such as "512MiB"; None stores every state. reserved: bytes of it for others.
        segment: steps between stored states, overriding `memory`.
        forward_only: keep nothing for an adjoint, and no states but those of a few steps; for evaluation.
        observation: what the controller sees; by default the state.
        parameters: names of physical parameters that vary between samples: the system's, or others that the objective
            and the observation read.
        noise: on states and controls; settle it by `seed_noise`.
        end: `end(states)` [B] of booleans, where a sample's rollout ends before the horizon; see `engine/ends.py`.

    Attributes:
        states: [T+1, B, *state_shape] if everything is stored, else the states of the segment last restored.
        controls: [T, B, *control_shape].
        trace: the controller's memory of the steps in the buffers.
        plan: the segments and the predicted bytes; those of sweeps with path rules, where the system fuses them.
        budget: bytes that it was planned for, or None.
        block: steps that are linearised together.
        turn: which forward rollout this is, counted from 1; rules that draw by chance draw other numbers in each.
        holds_jacobian: whether K is computed for whole blocks of time; decided from sizes that do not depend on
            the memory budget.
        parts: what it has besides, such as ends.
        finite: whether its numbers are finite, as it asks them.
    """

    @plain_torch
    def __init__(
        self,
        system: System,
        controller: Controller,
        horizon: int,
        batch: int,
        memory: str | int | None = None,
        segment: int | None = None,
        forward_only: bool = False,
        observation: Observation | None = None,
        parameters: Sequence[str] = (),
        noise: Noise | None = None,
        end: End | None = None,
        reserved: int = 0,
    ):
        check_system(system)
        check_controller(controller)
        horizon, batch = whole("a horizon of at least 1", horizon), whole("a batch of at least 1", batch)
        segment = None if segment is None else whole("a segment of at least 1", segment)
        forward_only = flag("forward_only", forward_only)
        check_fit(system, controller, batch)
        self.parts = Parts(system, batch, horizon, observation, parameters, noise, end)
        controller = self.parts.controller(controller)
        # Planning calls the controller, so first see that a call leaves nothing behind.
        controller.check(system.state_shape, system.control_shape, differentiated=not forward_only)
        self.system, self.controller, self.horizon, self.batch = system, controller, horizon, batch
        n, m = math.prod(system.state_shape), math.prod(system.control_shape)
        self.holds_jacobian = m <= _JACOBIAN_CONTROLS and m * n * batch <= _JACOBIAN_ELEMENTS
        self.forward_only = forward_only
        self._at_once = offered(system, controller, self.parts, batch)
        passing = _PASSING_STEPS if self._at_once else 1
        self.block = min(passing, self._block_steps()) if forward_only else self._block_steps()
        self.budget = None if memory is None else parse_bytes(memory)
        self.plan = self._plan(*((None, self.block) if forward_only else (memory, segment)), reserved)
        if forward_only and self.budget is not None:
            planning.check_budget(self.plan, self.budget)
        what = f"{batch} samples of {horizon} steps of {system.name}"
        check_available(self.plan.predicted, what, runtime.current().device)
        if memory is not None and len(self.plan.segments) > 1:
            return_freed_memory()
        self._allocate()
        self.restored: Segment | None = None
        self._versions = (0, 0)
        self._constants = self.parts.constants()
        self._seeded = self.parts.seeded
        self._begun: list[Cost] = []
        self.turn = 0
        self.finite = Finiteness()

    def _allocate(self) -> None:
        """Every buffer, and the launches of every slot."""
        slots, batch, system = self.plan.slots, self.batch, self.system
        options = {"dtype": runtime.current().dtype, "device": runtime.current().device}
        several = len(self.plan.segments) > 1
        self.states = torch.zeros(slots + 1, batch, *system.state_shape, **options)
        self.controls = torch.zeros(self.horizon, batch, *system.control_shape, **options)
        # Launches belong to slots, so that their number does not grow with the horizon: a segment's controls are
        # computed here and then copied to their steps. Where everything is stored, slots are steps.
        self.slot_controls = torch.zeros(slots, batch, *system.control_shape, **options) if several else self.controls
        stored = len(self.plan.segments) if several and not self.forward_only else 0
        self._checkpoints = torch.zeros(stored, batch, *system.state_shape, **options)
        kept = 1 if self.forward_only else slots
        self.trace = self.controller.trace(kept, batch, system.state_shape, system.control_shape)
        self._watch = self.controller.watch(self.trace, differentiated=not self.forward_only)
        self.parts.allocate(slots, self.controller.members)
        self._launches = self._prepare_launches()

    def _prepare_launches(self) -> OneLaunch | StepLaunches:
        trace: Any = self.trace
        if self._at_once and OneLaunch.indexes(trace):
            places = 1 if self.forward_only else self.plan.slots
            return OneLaunch(self.system, self.parts, trace, self.states, self.slot_controls, places)
        return StepLaunches(self.parts, trace, self.states, self.slot_controls)

    @plain_torch
    def forward(
        self, initial: torch.Tensor, cost: Cost | None = None, parameters: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Run T steps from `initial` [B, *state_shape]; with a cost, return the losses [B].

        `parameters` [B, q] are the values of those that vary between samples, in the order of their names.
        """
        runtime.current().check("initial state", initial, (self.batch, *self.system.state_shape))
        losses = None
        if cost is not None:
            check_cost(cost)
            losses = torch.zeros(self.batch, dtype=self.states.dtype, device=self.states.device)
        self.restored = None  # until this one is done
        self._watch.begin()
        self.turn += 1
        for grad in (self.states.grad, self.controls.grad):
            if grad is not None:  # of an earlier tape
                grad.zero_()
        with torch.inference_mode():
            self.parts.begin(initial, parameters, self.finite)
            self._seeded, self._constants = self.parts.seeded, self.parts.constants()
            if cost is not None:
                self.parts.check_names(cost, initial)
            self._forward(initial, cost, losses)
        return losses

    def seed_noise(self, seeds: int | Sequence[int], draw: int = 0, first: int = 0, each: int = 1) -> None:
        """Settle the noise of the rollouts that follow: a seed, or one for each member, and which of its draws.

        Noise depends on (seed, sample of the member, counted from `first`, step, draw) alone, not on the member; `each`
        so many rows in succession are one sample, and have one noise.
        """
        self.parts.seed(seeds, draw, first, each)

    def _forward(self, initial: torch.Tensor, cost: Cost | None, losses: torch.Tensor | None) -> None:
        segments, previous = self.plan.segments, initial
        for index, part in enumerate(segments):
            self.states[part.first].copy_(previous)
            if len(self._checkpoints):
                self._checkpoints[index].copy_(self.states[part.first])
            self._run(part)
            previous = self.states[part.last]
            if cost is not None and losses is not None:
                self._add_running(cost, part, losses)
        self.restored = segments[-1]
        if self.parts.ends is not None:
            self.parts.ends.conclude()
        if cost is not None and losses is not None:
            version = self.states._version
            final = self.parts.priced(cost, self.parts.rows()).final(self.final_state)
            if final is not None:
                check_tensor("a final cost for each sample", final, (self.batch,), self.states)
                losses += final
            if self.states._version != version:
                raise modified(cost)

    @property
    def final_state(self) -> torch.Tensor:
        """x_T [B, *state_shape], after `forward` and until `backward` restores an earlier segment."""
        return self.states[self.plan.segments[-1].last]

    @property
    def initial_state(self) -> torch.Tensor:
        """x_0 [B, *state_shape] of the last forward rollout."""
        return self._checkpoints[0] if len(self._checkpoints) else self.states[0]

    def check_stored(self) -> None:
        """AdjointError unless there is a forward rollout whose states can be had again.

        Parameters may not have changed since, and neither the states and controls in memory.
        """
        if self.forward_only:
            raise AdjointError("Expected a rollout that stores its states, got forward_only=True; build another.")
        if self.restored is None:
            raise AdjointError("Expected a forward rollout before its adjoint, got none; call the rollout first.")
        changed = self._watch.changed(self.finite.equal)
        if changed is None and self._versions != (self.states._version, self.controls._version):
            changed = "states or controls that were written to"
        if changed is None and self._seeded != self.parts.seeded:
            changed = "noise that was seeded anew"
        if changed is None and self._constants != self.parts.constants():
            changed = f"another constant of {self.system.name}"
        if changed is not None:
            raise AdjointError(
                f"Expected the adjoint of the last forward rollout, got {changed} since; call the rollout again first."
            )

    def frozen(self) -> torch.Tensor | None:
        """Which of the controller's parameters [n] are not to be trained, so that their gradient is 0, or None."""
        return self._watch.frozen()

    @torch.inference_mode()
    def restore(self, part: Segment) -> None:
        """Put the states of `part` and the controller's trace of it back into the buffers."""
        if self.restored != part:
            self.states[part.first].copy_(self._checkpoints[self.plan.segments.index(part)])
            self._run(part)
        self.restored = part

    def show(self, first: int, last: int, states: torch.Tensor) -> None:
        """Put `states` [last - first, B, ...] into slots and have the controller act on them, which writes controls."""
        self.states[first:last].copy_(states)
        self._launches.show(first, last)
        self._versions = (self.states._version, self.controls._version)

    @plain_torch
    def first_nonfinite(self, samples: slice) -> tuple[int, int] | None:
        """(step, sample) of the first state of `samples` that is not finite, or None; restores segments as needed."""
        self.check_stored()
        for part in self.plan.segments:
            self.restore(part)
            # A segment's last state is the next one's first.
            slots = slice(part.first, part.last + (part.stop == self.horizon))
            bad = (~torch.isfinite(self.states[slots, samples]).flatten(2).all(2)).nonzero()
            if len(bad):
                step, sample = bad[0].tolist()
                return part.start + step, samples.start + sample
        return None

    def _run(self, part: Segment) -> None:
        self.parts.enter(part)
        self._launches.run(part.first, part.last)
        if self.slot_controls is not self.controls:
            self.controls[part.start : part.stop].copy_(self.slot_controls[part.first : part.last])
        self._versions = (self.states._version, self.controls._version)

    def _add_running(self, cost: Cost, part: Segment, losses: torch.Tensor) -> None:
        for first, last in part.own_blocks(self.block, self.horizon):
            steps = torch.arange(part.base + first, part.base + last, device=self.states.device)
            states, controls = self.states[first:last], self.controls[part.base + first : part.base + last]
            version = self.states._version, self.controls._version
            values = self.parts.priced(cost, self.parts.rows(len(states))).running(states, controls, steps)
            if (self.states._version, self.controls._version) != version:
                raise modified(cost)
            if values is None:
                break
            self.check_running(cost, values, states, controls, part.base + first)
            losses += self.parts.masked(values, steps).sum(0)

    def check_running(
        self, cost: Cost, values: torch.Tensor, states: torch.Tensor, controls: torch.Tensor, start: int
    ) -> None:
        """ShapeError unless `values` are running costs [S, B]; when first asked, AdjointError if the first is NaN."""
        check_tensor(
            f"running costs for {len(states)} steps and {self.batch} samples", values, states.shape[:2], self.states
        )
        if start > 0 or any(cost is seen for seen in self._begun):
            return
        self._begun = [*self._begun[-3:], cost]
        given = torch.isfinite(states[0]).flatten(1).all(1) & torch.isfinite(controls[0]).flatten(1).all(1)
        undefined = torch.isnan(values[0].detach()) & given
        if bool(undefined.any()):
            raise AdjointError(
                "Expected a cost of the first state that is a number, got nan at sample "
                f"{int(undefined.nonzero()[0])}, whose state and control are finite; look for 0/0, roots and "
                "logarithms in the objective."
            )

    def _block_steps(self) -> int:
        bytes_per_step = self.batch * math.prod(self.system.state_shape) * runtime.current().dtype.itemsize
        return max(1, min(_BLOCK_ROWS // self.batch, _BLOCK_BYTES // bytes_per_step, _BLOCK_STEPS, self.horizon))

    def _plan(self, memory: str | int | None, segment: int | None, reserved: int) -> MemoryPlan:
        system, controller, batch, item = self.system, self.controller, self.batch, runtime.current().dtype.itemsize
        n, m = math.prod(system.state_shape), math.prod(system.control_shape)
        trace_bytes = controller.trace_bytes(batch, system.state_shape, system.control_shape)
        per_slot = batch * (n + m) * item + self.parts.slot_bytes() + self._launch_bytes()
        fixed = whole("reserved bytes of at least 0", reserved, least=0) + batch * self.horizon * m * item
        if self.forward_only:
            fixed += trace_bytes
        else:
            per_slot += trace_bytes + SweepBuffers.slot_bytes(system, batch, self.holds_jacobian)
        fixed += SweepBuffers.fixed_bytes(system, batch, self.block, controller.members * controller.parameter_count)
        fixed += controller.scratch_bytes(batch if self.forward_only else self.block * batch)
        fixed += system.scratch_bytes(batch)
        checkpoint = 0 if self.forward_only else batch * n * item
        return planning.plan(
            self.horizon, self.block, memory, per_slot, checkpoint, fixed, segment=segment,
            elements_per_slot=batch * max(n, m, m * n if self.holds_jacobian else 0),
        )  # fmt: skip

    def _launch_bytes(self) -> int:
        """Bytes of one slot's launches; in one launch there are none but a pull-back's."""
        if runtime.current().backend == "cuda":  # where launches are in the host's memory, not in the device's
            return 0
        of_system = self.system.launch_bytes()
        if self._at_once:
            return max(0, of_system - STEP_LAUNCH_BYTES)
        of_controller = getattr(self.controller, "launch_bytes", None)  # few have any to speak of
        return _LAUNCH_BYTES + of_system + (0 if of_controller is None else of_controller())

"""The adjoint sweep through one rollout, segment by segment, with a rule between any two steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from engine.launch import Launch
from engine.memory import Segment
from engine.rules import AdjointRule
from engine.threads import BLOCK_ROWS, torch_threads
from engine.trajectory import Cost, Trajectory

# Rules whose fused launches are kept; a schedule of rules would make ever more.
_FUSED_KEPT = 16


@dataclass
class Gradients:
    """What a backward pass found.

    Attributes:
        losses: [B], the loss of each sample.
        parameters: for each rule [members, parameters], the gradient of the member's mean loss.
        initial: for each rule λ_0 [B, *state_shape], per sample.
    """

    losses: torch.Tensor
    parameters: dict[AdjointRule, torch.Tensor] = field(default_factory=dict)
    initial: dict[AdjointRule, torch.Tensor] = field(default_factory=dict)


Inspect = Callable[[AdjointRule, Segment, torch.Tensor, torch.Tensor], None]
"""Called for each rule and segment, last segment first, with adjoints [S+1, B, ...] and cotangents [S, B, ...]."""


class Sweeper:
    """Buffers and prepared launches of the backward pass through one trajectory."""

    def __init__(self, rollout: Trajectory):
        self.rollout, self.record = rollout, rollout.record
        states, controls = rollout.states, rollout.controls
        slots = rollout.plan.slots
        self.adjoints = torch.zeros_like(states, requires_grad=False)
        self.cotangents = controls.new_zeros(slots, *controls.shape[1:])
        self.direct_states = states.new_zeros(slots, *states.shape[1:])
        self.direct_controls = torch.zeros_like(self.cotangents)
        n, m = math.prod(rollout.system.state_shape), math.prod(rollout.system.control_shape)
        self.jacobian = states.new_zeros(slots, rollout.batch, m, n) if rollout.holds_jacobian else None
        self._physics = torch.zeros_like(states[0], requires_grad=False)
        self._fused: dict[tuple, Launch | None] = {}
        self._pull_backs: dict[tuple, list[Launch]] = {}

    def run(
        self, rules: list[AdjointRule], cost: Cost | None, samples: dict[AdjointRule, slice], inspect: Inspect | None
    ) -> Gradients:
        everyone = slice(0, self.rollout.batch)
        swept = {rule: samples.get(rule, everyone) for rule in rules}
        self._forget(swept)
        with torch_threads(self.rollout.batch * self.rollout.block >= BLOCK_ROWS):
            return self._run(swept, cost, inspect)

    def _forget(self, swept: dict[AdjointRule, slice]) -> None:
        """Drop launches that this sweep does not need: samples and rules may change with every sweep of a training."""
        parts = {(samples.start, samples.stop) for samples in swept.values()}
        self._pull_backs = {key: launches for key, launches in self._pull_backs.items() if key[1:] in parts}
        if len(self._fused) > _FUSED_KEPT * len(self.rollout.plan.segments):
            self._fused.clear()

    def _run(self, swept: dict[AdjointRule, slice], cost: Cost | None, inspect: Inspect | None) -> Gradients:
        rollout, rules = self.rollout, list(swept)
        states = rollout.states
        members, count = rollout.controller.members, rollout.controller.parameter_count
        result = Gradients(states.new_zeros(rollout.batch))
        for rule in rules:
            result.parameters[rule] = states.new_zeros(members, count)
        carried = {rule: torch.zeros_like(states[0], requires_grad=False) for rule in rules}
        final = self._final(cost, result)
        for rule in rules:
            carried[rule].copy_(final)
        for part in reversed(rollout.plan.segments):
            rollout.restore(part)
            self._direct(cost, part, result)
            with torch.inference_mode():
                self._linearise(swept, part)
                for rule, chosen in swept.items():
                    self.adjoints[part.last].copy_(carried[rule])
                    self._sweep(rule, part, chosen)
                    carried[rule].copy_(self.adjoints[part.first])
                    for first, last in part.own_blocks(rollout.block, rollout.horizon):
                        self.record.pull_back_parameters(
                            first, last, states[first:last], self.cotangents[first:last], chosen,
                            result.parameters[rule],
                        )  # fmt: skip
                    if inspect is not None:
                        inspect(
                            rule, part, self.adjoints[part.first : part.last + 1],
                            self.cotangents[part.first : part.last],
                        )  # fmt: skip
        for rule in rules:
            result.parameters[rule] /= rollout.batch // members
            result.initial[rule] = carried[rule]
        return result

    def _final(self, cost: Cost | None, result: Gradients) -> torch.Tensor:
        """∂ℓ_T/∂x_T, and the final cost added to the losses."""
        rollout = self.rollout
        rollout.restore(rollout.plan.segments[-1])
        gradient = torch.zeros_like(rollout.states[0], requires_grad=False)
        if cost is not None:
            state = rollout.final_state.detach().requires_grad_()
            value = cost.final(state)
            if value is not None:
                if value.requires_grad:
                    (gradient,) = torch.autograd.grad(value.sum(), state, allow_unused=True, materialize_grads=True)
                result.losses += value.detach()
        if rollout.states.grad is not None:
            gradient = gradient + rollout.states.grad[rollout.plan.segments[-1].last]
        return gradient

    def _direct(self, cost: Cost | None, part: Segment, result: Gradients) -> None:
        """∂ℓ_t/∂x_t and ∂ℓ_t/∂u_t of a segment, block by block, and the running costs added to the losses."""
        rollout = self.rollout
        self.direct_states.zero_()
        self.direct_controls.zero_()
        blocks = part.blocks(rollout.block, rollout.horizon) if cost is not None else []
        for first, last in blocks:
            times = torch.arange(part.base + first, part.base + last, device=rollout.states.device)
            states = rollout.states[first:last].detach().requires_grad_()
            controls = rollout.controls[part.base + first : part.base + last].detach().requires_grad_()
            values = cost.running(states, controls, times)  # type: ignore[union-attr]
            if values is None:
                break
            gradients = (None, None)
            if values.requires_grad:
                gradients = torch.autograd.grad(values.sum(), (states, controls), allow_unused=True)
            for buffer, gradient in zip((self.direct_states, self.direct_controls), gradients, strict=True):
                if gradient is not None:
                    buffer[first:last].copy_(gradient)
            inside = slice(max(first, part.first) - first, min(last, part.last) - first)
            result.losses += values.detach()[inside].sum(0)
        if rollout.states.grad is not None:
            self.direct_states.add_(rollout.states.grad[: len(self.direct_states)])

    def _linearise(self, swept: dict[AdjointRule, slice], part: Segment) -> None:
        """Linearise the controller for every sample that some rule needs, with K where a rule uses it."""
        using = [samples for rule, samples in swept.items() if rule.uses_policy and self.jacobian is not None]
        wanted = using or list(swept.values())
        chosen = slice(min(one.start for one in wanted), max(one.stop for one in wanted))
        for first, last in part.blocks(self.rollout.block, self.rollout.horizon):
            jacobian = self.jacobian[first:last] if using and self.jacobian is not None else None
            self.record.linearise(first, last, self.rollout.states[first:last], chosen, jacobian)

    def _sweep(self, rule: AdjointRule, part: Segment, samples: slice) -> None:
        first, last = part.first, part.last
        self.cotangents[first:last].copy_(self.direct_controls[first:last])
        key = (rule, first, last, part.start, samples.start, samples.stop)
        if key not in self._fused:
            self._fused[key] = self._prepare_fused(rule, part, samples)
        fused = self._fused[key]
        if fused is not None:
            fused()
        else:
            self._sweep_by_steps(rule, part, samples)

    def _prepare_fused(self, rule: AdjointRule, part: Segment, samples: slice) -> Launch | None:
        if rule.uses_policy and self.jacobian is None:
            return None
        first, last, rollout = part.first, part.last, self.rollout
        jacobian = self.jacobian[first:last] if self.jacobian is not None else self._physics.new_zeros(1, 1, 1, 1)
        return rollout.system.prepare_sweep(
            rollout.states[first : last + 1].detach(),
            rollout.controls[part.start : part.stop],
            self.direct_states[first:last],
            jacobian,
            self.adjoints[first : last + 1],
            self.cotangents[first:last],
            samples,
            rule,
        )

    def _sweep_by_steps(self, rule: AdjointRule, part: Segment, samples: slice) -> None:
        physics = self._physics[samples]
        pull_backs = self._prepare_pull_backs(part, samples)
        for t in range(part.stop - 1, part.start - 1, -1):
            slot = t - part.base
            pull_backs[t - part.start]()
            policy = self._policy_term(slot, samples) if rule.uses_policy else None
            direct = self.direct_states[slot, samples]
            adjoint = rule(direct, physics if rule.uses_physics else None, policy, t)
            self.adjoints[slot, samples].copy_(adjoint)

    def _policy_term(self, slot: int, samples: slice) -> torch.Tensor:
        cotangent, state = self.cotangents[slot, samples], self.rollout.states[slot, samples]
        if self.jacobian is None:
            return self.record.pull_back_state(slot, state, cotangent, samples)
        rows = cotangent.flatten(1).unsqueeze(1)
        return torch.bmm(rows, self.jacobian[slot, samples]).view_as(state)

    def _prepare_pull_backs(self, part: Segment, samples: slice) -> list[Launch]:
        """The pull-backs of a segment's steps, all prepared at once.

        Prepared between the steps of a sweep, these small objects that stay would break up the memory that the
        rules' temporaries come from, step after step.
        """
        key = (part.start, samples.start, samples.stop)
        if key not in self._pull_backs:
            rollout = self.rollout
            self._pull_backs[key] = [
                rollout.system.prepare_pull_back(
                    rollout.states[t - part.base, samples].detach(),
                    rollout.controls[t, samples],
                    self.adjoints[t - part.base + 1, samples],
                    self._physics[samples],
                    self.cotangents[t - part.base, samples],
                )
                for t in range(part.start, part.stop)
            ]
        return self._pull_backs[key]

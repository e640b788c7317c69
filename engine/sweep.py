"""The adjoint sweep through one rollout, segment by segment, with a rule between any two steps."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from engine import ended, first_use, runtime
from engine.alignment import aligned
from engine.buffers import SweepBuffers
from engine.contracts import check_launch, check_rule, check_tensor, described
from engine.cost_gradients import final_gradient, write_running_gradients
from engine.draws import keys_of
from engine.errors import AdjointError, EvenflowWarning
from engine.fused import MOST_COMPONENTS, Law, SweepArrays
from engine.held import Between, Held
from engine.launch import Launch
from engine.loops import BLOCK_ROWS, torch_threads
from engine.memory import format_bytes
from engine.noise import STATE
from engine.parameter_sweep import ParameterSweep
from engine.plan import Segment
from engine.pull_back import pull_back_parameters, pull_back_samples
from engine.rules import (
    AdjointRule,
    PerSample,
    Place,
    numbers_of,
    placed,
    says_itself_on_a_sample,
    sums_paths,
)
from engine.system import PULL_BACK_LAUNCH_BYTES
from engine.trajectory import Cost, Trajectory
from engine.trials.agreement import check_agreement

# Rules whose fused launches are kept; a schedule of rules would make ever more.
_FUSED_KEPT = 16
# Rules for which kernels are compiled, which stay with the process; the others of a schedule are called.
_MOST_COMPILED = 32


@dataclass
class Gradients:
    """What a backward pass found.

    Attributes:
        losses: [B], the loss of each sample.
        parameters: for each rule [members, parameters], the gradient of the member's mean loss; for a `PerSample` rule
            [members, samples, parameters], the gradients of each sample's loss.
        initial: for each rule λ_0 [B, *state_shape], per sample.
        physical: for each rule ∂L/∂p [B, q], per sample, of the parameters that vary; empty without any, or if not
            asked for. What reaches p through the observation counts as the policy path does.
    """

    losses: torch.Tensor
    parameters: dict[AdjointRule, torch.Tensor] = field(default_factory=dict)
    initial: dict[AdjointRule, torch.Tensor] = field(default_factory=dict)
    physical: dict[AdjointRule, torch.Tensor] = field(default_factory=dict)


Inspect = Callable[[AdjointRule, Segment, torch.Tensor, torch.Tensor], None]
"""Called for each rule and segment, last segment first, with adjoints [S+1, B, ...] and cotangents [S, B, ...]."""


class Sweeper(SweepBuffers):
    """Buffers and prepared launches of the backward pass through one trajectory."""

    def __init__(self, rollout: Trajectory):
        super().__init__(rollout.system, rollout.plan.slots, rollout.batch, rollout.holds_jacobian)
        self.rollout, self.trace = rollout, rollout.trace
        self._physics = torch.zeros_like(self.adjoints[0])
        self._start = torch.zeros(1, dtype=torch.int32, device=self.adjoints.device)
        self._fused: dict[tuple, Launch | None] = {}
        self._pull_backs: dict[tuple, list[Launch]] = {}
        self._between = Between()
        self._of_held = {"between": self._between} if isinstance(rollout.system, Held) else {}
        self._of_parameters: ParameterSweep | None = None  # where a sweep is asked for ∂L/∂p
        self._made_of_parameters: ParameterSweep | None = None
        self._trusted: set[AdjointRule] = set()
        self._compiled: dict[AdjointRule, dict] = {}  # with the numbers that each had then
        self._costs: list[Cost] = []

    def run(
        self,
        rules: list[AdjointRule],
        cost: Cost | None,
        samples: dict[AdjointRule, slice],
        inspect: Inspect | None,
        physical: bool,
    ) -> Gradients:
        self._ask(physical and self.rollout.parts.parameters is not None)
        everyone = slice(0, self.rollout.batch)
        swept = {rule: samples.get(rule, everyone) for rule in rules}
        self._forget(swept)
        shared = self.rollout.batch * self.rollout.block >= BLOCK_ROWS
        with torch_threads(shared):
            result = self._run(swept, cost, inspect)
        if cost is not None and not any(cost is seen for seen in self._costs):
            self._costs = [*self._costs[-3:], cost]
            first_use.check_costs(self.rollout, cost)
            added = self.rollout.states.grad is not None or self.rollout.controls.grad is not None
            if not added and self.rollout.frozen() is None:
                first_use.tell_of_no_gradient(cost, result.losses, result.parameters)
        return result

    def _ask(self, physical: bool) -> None:
        """Find ∂L/∂p besides, or leave it out: then the system's launches do without it, too."""
        if physical and self._made_of_parameters is None:
            self._made_of_parameters = ParameterSweep(self.rollout)
        self._of_parameters = self._made_of_parameters if physical else None

    def _arguments(self, samples: slice = slice(None)) -> dict[str, torch.Tensor]:
        """What the system's launches are prepared with besides, where parameters vary."""
        parameters = self.rollout.parts.parameters
        if self._of_parameters is not None:
            return self._of_parameters.arguments(samples)
        return {} if parameters is None else parameters.arguments(samples)

    def _key(self, samples: slice) -> tuple:
        return samples.start, samples.stop, self._of_parameters is not None

    def _forget(self, swept: dict[AdjointRule, slice]) -> None:
        """Drop launches that this sweep does not need: samples and rules may change with every sweep of a training."""
        parts = {self._key(samples) for samples in swept.values()}
        self._pull_backs = {key: launches for key, launches in self._pull_backs.items() if key in parts}
        if len(self._fused) > _FUSED_KEPT * min(len(self.rollout.plan.segments), self.rollout.plan.slots):
            self._fused.clear()

    def _run(self, swept: dict[AdjointRule, slice], cost: Cost | None, inspect: Inspect | None) -> Gradients:
        rollout, rules = self.rollout, list(swept)
        states = rollout.states
        members, count = rollout.controller.members, rollout.controller.parameter_count
        result = Gradients(states.new_zeros(rollout.batch))
        each = rollout.batch // members
        for rule in rules:
            rows = (members, each) if isinstance(rule, PerSample) else (members,)
            result.parameters[rule] = states.new_zeros(*rows, count)
        varied, ends = self._of_parameters, rollout.parts.ends
        direct_rows = None if varied is None else varied.begin(rules)
        final = final_gradient(rollout, cost, result.losses, direct_rows)
        reaching = final if ends is None else ends.reaching(final)
        carried = {rule: reaching.clone(memory_format=torch.contiguous_format) for rule in rules}
        for part in reversed(rollout.plan.segments):
            rollout.restore(part)
            write_running_gradients(rollout, cost, part, self, result.losses, direct_rows)
            if ends is not None:
                steps = torch.arange(len(self.direct_states), device=states.device) + part.base
                ends.settle(steps, self.direct_states, self.direct_controls, final)
            with torch.inference_mode():
                self._linearise(swept, part)
                for rule, chosen in swept.items():
                    self.adjoints[part.last].copy_(carried[rule])
                    self._sweep(rule, part, chosen)
                    carried[rule].copy_(self.adjoints[part.first])
                    pull_back = pull_back_samples if isinstance(rule, PerSample) else pull_back_parameters
                    pull_back(rollout, part, self.cotangents, chosen, result.parameters[rule])
                    if varied is not None:
                        varied.add(rule, placed(rule, self._place(chosen)), part, chosen, self.cotangents)
                    if inspect is not None:
                        inspect(
                            rule, part, self.adjoints[part.first : part.last + 1],
                            self.cotangents[part.first : part.last],
                        )  # fmt: skip
        for rule in rules:
            if not isinstance(rule, PerSample):
                result.parameters[rule] /= each
            result.initial[rule] = carried[rule]
        if varied is not None:
            result.physical = varied.found()
        return result

    def _linearise(self, swept: dict[AdjointRule, slice], part: Segment) -> None:
        """Linearise the controller for every sample that some rule needs, with K where a rule uses it."""
        using = [samples for rule, samples in swept.items() if rule.uses_policy and self.jacobian is not None]
        wanted = using or list(swept.values())
        chosen = slice(min(one.start for one in wanted), max(one.stop for one in wanted))
        for first, last in part.blocks(self.rollout.block, self.rollout.horizon):
            jacobian = self.jacobian[first:last] if using and self.jacobian is not None else None
            self.trace.linearise(first, last, self.rollout.states[first:last], chosen, jacobian)

    def _sweep(self, rule: AdjointRule, part: Segment, samples: slice) -> None:
        """λ and μ of a segment; done again with care for samples that ended where something is not finite."""
        first, last = part.first, part.last
        self.cotangents[first:last].copy_(self.direct_controls[first:last])
        acting = placed(rule, self._place(samples))
        if acting is not rule:
            check_rule(acting)
        fused = self._fused_launch(acting, part, samples)
        if self._of_parameters is not None:
            self._of_parameters.of_system.zero_()
        if fused is not None:
            self._start.fill_(part.start)
            fused()
        else:
            self._sweep_by_steps(rule, acting, part, samples)
        adjoints, cotangents = self.adjoints[first : last + 1, samples], self.cotangents[first:last, samples]
        rows = () if self._of_parameters is None else (self._of_parameters.of_system[samples],)
        if self.rollout.finite(adjoints, cotangents, *rows):
            return
        again = ended.spoilt(adjoints, cotangents, *rows)
        if bool(again.any()):
            kept = adjoints[:, ~again].clone(), cotangents[:, ~again].clone()
            cotangents.copy_(self.direct_controls[first:last, samples])
            with nullcontext() if self._of_parameters is None else self._of_parameters.again(samples, again):
                self._sweep_by_steps(rule, acting, part, samples, careful=True)
            adjoints[:, ~again], cotangents[:, ~again] = kept

    def _fused_launch(self, rule: AdjointRule, part: Segment, samples: slice) -> Launch | None:
        """The one launch that sweeps by a rule in its place; None where it must be called between the steps."""
        if not (hasattr(rule, "on_sample") or hasattr(rule, "path_weights")):
            return None
        if rule in self._compiled and self._compiled[rule] != numbers_of(rule):
            raise AdjointError(
                f"Expected {described(rule)} with the numbers that it had when it was first swept, which its kernel "
                "holds, got others; make another rule for other numbers."
            )
        key = (rule, getattr(rule, "path_weights", None), part.first, part.last, *self._key(samples))
        if key not in self._fused:
            self._fused[key] = self._prepare_fused(rule, part, samples)
        return self._fused[key]

    def _prepare_fused(self, rule: AdjointRule, part: Segment, samples: slice) -> Launch | None:
        law = self._law(rule)
        if law is None or (rule.uses_policy and self.jacobian is None):
            return None
        first, last, rollout = part.first, part.last, self.rollout
        launch = rollout.system.prepare_sweep(
            SweepArrays(
                rollout.states[first : last + 1].detach(),
                rollout.slot_controls[first:last],
                self.direct_states[first:last],
                self.jacobian[first:last] if self.jacobian is not None else self._physics.new_zeros(1, 1, 1, 1),
                self.adjoints[first : last + 1],
                self.cotangents[first:last],
                samples,
                self._start,
                law,
                rule.path_weights if sums_paths(rule) else (0.0, 0.0),
                STATE in rollout.parts.noise,
                **self._arguments(),
            )
        )
        if launch is not None and not law.sums_paths and rule not in self._compiled:
            check_agreement(rule, rollout.system.state_shape)
            if law.acts_between:  # at times that the rule itself never sees
                check_agreement(getattr(rule, "of", rule), rollout.system.state_shape)
            self._compiled[rule] = numbers_of(rule)
        return launch

    def _law(self, rule: AdjointRule) -> Law | None:
        """What a kernel that sweeps by this rule is compiled for; None where it must be called between the steps."""
        if sums_paths(rule):
            return Law(rule.uses_physics, rule.uses_policy)
        if self._physics[0].numel() > MOST_COMPONENTS or not says_itself_on_a_sample(rule):
            return None
        if rule not in self._compiled and len(self._compiled) >= _MOST_COMPILED:
            return None
        return Law(rule.uses_physics, rule.uses_policy, rule)

    def _sweep_by_steps(
        self, rule: AdjointRule, acting: AdjointRule, part: Segment, samples: slice, careful: bool = False
    ) -> None:
        """λ and μ of a segment by a rule, which in its place is the one `acting`, called between the steps."""
        physics, pull_backs = self._physics[samples], self._prepare_pull_backs(samples)
        varied = self._of_parameters
        trusted, version = rule in self._trusted, self.direct_states._version
        self._between.rule = getattr(acting, "between", None)
        for t in range(part.stop - 1, part.start - 1, -1):
            slot, self._between.t = t - part.base, t
            before = None if not careful or varied is None else varied.of_system[samples].clone()
            pull_backs[slot]()
            if careful:
                over = ended.zero_rows(self.adjoints[slot + 1, samples])
                if varied is not None and before is not None:
                    varied.of_system[samples][over] = before[over]
                physics[over] = 0.0
                self.cotangents[slot, samples][over] = self.direct_controls[slot, samples][over]
            policy = self._policy_term(slot, samples) if rule.uses_policy else None
            if careful and policy is not None:
                policy = policy.clone()
                policy[ended.zero_rows(self.cotangents[slot, samples])] = 0.0
            direct = self.direct_states[slot, samples]
            adjoint = acting(direct, physics if rule.uses_physics else None, policy, t)
            if not trusted:
                check_tensor(f"an adjoint from rule {described(rule)} at step {t}", adjoint, direct.shape, direct)
            self.adjoints[slot, samples].copy_(adjoint)
        if self.direct_states._version != version:
            raise AdjointError(
                f"Expected a rule that leaves its arguments as they are, got {described(rule)}, which changes `direct` "
                "in place; start from direct.clone()."
            )
        self._trusted.add(rule)

    def _place(self, samples: slice) -> Place:
        rollout, system = self.rollout, self.rollout.system
        held = system.steps if isinstance(system, Held) else 1
        return Place(system.step_time, lambda: keys_of(rollout.initial_state[samples].flatten(1), rollout.turn), held)

    def _policy_term(self, slot: int, samples: slice) -> torch.Tensor:
        cotangent, state = self.cotangents[slot, samples], self.rollout.states[slot, samples]
        if self.jacobian is None:
            return self.trace.pull_back_state(slot, state, cotangent, samples)
        rows = aligned(cotangent).flatten(1).unsqueeze(1)
        return torch.bmm(rows, aligned(self.jacobian[slot, samples])).view_as(state)

    def _prepare_pull_backs(self, samples: slice) -> list[Launch]:
        """The pull-backs of all slots, prepared at once.

        Prepared between the steps of a sweep, these small objects that stay would break up the memory that the
        rules' temporaries come from, step after step.
        """
        key = self._key(samples)
        if key not in self._pull_backs:
            rollout = self.rollout
            self._tell_of_more_launches()
            given: dict[str, Any] = {**self._arguments(samples), **self._of_held}
            self._pull_backs[key] = [
                rollout.system.prepare_pull_back(
                    rollout.states[slot, samples].detach(),
                    rollout.slot_controls[slot, samples],
                    self.adjoints[slot + 1, samples],
                    self._physics[samples],
                    self.cotangents[slot, samples],
                    **given,
                )
                for slot in range(rollout.plan.slots)
            ]
            check_launch(f"prepare_pull_back of {type(rollout.system).__name__}", self._pull_backs[key][0])
        return self._pull_backs[key]

    def _tell_of_more_launches(self) -> None:
        """Warn where launches that plans do not count, since path rules do without, may exceed the budget."""
        rollout, count = self.rollout, len(self._pull_backs) + 1
        if runtime.current().backend == "cuda":  # a budget there is of the device's memory, and launches in the host's
            return
        more = rollout.plan.slots * PULL_BACK_LAUNCH_BYTES * (count - rollout.system.counts_pull_backs())
        if rollout.budget is not None and rollout.plan.predicted + more > rollout.budget:
            warnings.warn(
                f"Expected a rule that is swept in one launch to keep to the budget of {format_bytes(rollout.budget)}, "
                f"got one that is swept step by step, whose launches may take {format_bytes(more)} more; raise memory.",
                EvenflowWarning,
                stacklevel=6,
            )

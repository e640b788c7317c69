"""Rollouts: a trajectory with the adjoint sweeps back through it."""

from collections.abc import Mapping, Sequence

import torch
from taichi.lang import impl

from engine import runtime
from engine.contracts import check_cost, check_rules
from engine.errors import AdjointError, ShapeError
from engine.modes import plain_torch
from engine.one_process import OneProcess
from engine.rules import AdjointRule
from engine.sweep import Gradients, Inspect, Sweeper
from engine.tape import RolloutTape
from engine.trajectory import Cost, Trajectory


class Rollout(OneProcess, Trajectory):
    """A `Trajectory` that can be differentiated.

    Calling it inside a `RolloutTape` records it; `forward` and `backward` do the same without a tape.
    """

    _sweeper: Sweeper | None = None

    def __call__(
        self, initial: torch.Tensor, cost: Cost | None = None, parameters: torch.Tensor | None = None
    ) -> "Rollout":
        """Run forward from `initial` [B, *state_shape]; an open `RolloutTape` sweeps it when it closes.

        `parameters` [B, q] as in `forward`.
        """
        runtime.current().check("initial state", initial, (self.batch, *self.system.state_shape))
        tape = impl.get_runtime().target_tape
        if isinstance(tape, RolloutTape):
            tape.record_rollout(self, initial, cost, parameters)
        elif tape is not None:
            raise AdjointError("Expected rollouts inside a RolloutTape, got a ti.ad.Tape, which cannot replay them.")
        self.forward(initial.detach(), parameters=parameters)
        return self

    @plain_torch
    def backward(
        self,
        rules: Sequence[AdjointRule],
        cost: Cost | None = None,
        samples: Mapping[AdjointRule, slice] | None = None,
        inspect: Inspect | None = None,
        physical: bool = True,
    ) -> Gradients:
        """Sweep back once for each rule through the last forward rollout.

        Args:
            rules: the adjoint rules, each swept by itself over the same rollout.
            cost: what is differentiated; None if all of it arrives in `states.grad` and `controls.grad`.
            samples: for a rule the contiguous samples (whole members) that need it; all by default.
            inspect: sees every adjoint and cotangent.
            physical: whether ∂L/∂p is wanted of parameters that vary; a sweep without it costs less.

        Raises:
            AdjointError: before any forward rollout, if its states are not stored, or if parameters, states or
                controls are no longer those of it.
            ShapeError: samples that are not whole members, or of a rule that is not swept.
        """
        check_rules(rules)
        if cost is not None:
            check_cost(cost)
        self.check_stored()
        if cost is not None:
            self.parts.check_names(cost, self.initial_state.detach())
        self._check_added_gradients(cost)
        if self._sweeper is None:
            self.parts.check_observation(self.initial_state[None])
            self._sweeper = Sweeper(self)
        chosen = {rule: self._whole_members(part) for rule, part in (samples or {}).items()}
        for rule in chosen:
            if rule not in rules:
                raise ShapeError(f"Expected samples of rules that are swept, got samples of {rule}; add it to rules.")
        try:
            result = self._sweeper.run(list(dict.fromkeys(rules)), cost, chosen, inspect, physical)
        except RuntimeError as error:
            if "Inference tensors cannot be saved" not in str(error):
                raise
            raise AdjointError(
                "Expected an objective whose tensors autograd can use, got one made under torch.inference_mode(); "
                "make it outside, or clone it there."
            ) from error
        frozen = self.frozen()
        if frozen is not None:
            for gradient in result.parameters.values():
                gradient.masked_fill_(frozen, 0.0)
        return result

    def _check_added_gradients(self, cost: Cost | None) -> None:
        """AdjointError where kernels add to `states.grad` or `controls.grad` and a sweep could not use it, or nothing
        is differentiated."""
        if self.states.grad is None and self.controls.grad is None:
            if cost is None:
                raise AdjointError(
                    "Expected an objective, or kernels that add to rollout.states.grad or rollout.controls.grad, got "
                    "neither, so that every gradient would be 0; call the rollout with an objective."
                )
            return
        name = "states.grad" if self.states.grad is not None else "controls.grad"
        if len(self.plan.segments) > 1:
            raise AdjointError(
                f"Expected every state in memory where kernels add to {name}, got a rollout cut into segments; "
                "drop its memory budget."
            )
        if self.parts.ends is not None:
            raise AdjointError(
                f"Expected an objective where samples end before the horizon, got kernels that add to {name}."
            )

    def _whole_members(self, samples: slice) -> slice:
        rows = self.batch // self.controller.members
        first, last, step = samples.indices(self.batch)
        given = (samples.start or 0, self.batch if samples.stop is None else samples.stop)
        if (first, last) != given or first % rows or last % rows or last <= first or step != 1:
            raise ShapeError(
                f"Expected samples of whole members, {rows} each and {self.batch} in all, got {given[0]} to {given[1]}."
            )
        return slice(first, last)

"""A rollout as an operation of torch, with what torch computes before and after it."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from engine import FULL, AdjointError, AdjointRule, EvenflowWarning, Rollout, ShapeError
from engine.contracts import check_cost, check_rule, described
from engine.modes import plain_torch
from engine.trajectory import Cost
from training.objectives import Objective


def differentiable(rollout: Rollout, rule: AdjointRule = FULL, objective: Cost | None = None) -> Callable[..., Any]:
    """A function `(initial, parameters=None)` of torch tensors whose `backward` sweeps the rollout by `rule`.

    It returns the losses [B] of the objective, or without one the states [T+1, B, *state_shape] and the controls
    [T, B, *control_shape], from which any loss can be computed. Gradients reach `initial` [B, *state_shape],
    `parameters` [B, q] and `rollout.controller.theta`, and through them whatever they were computed from. Of a sample
    that ends early, states and controls after its end count nothing, but for the last state.

    Torch's autograd differentiates it, in one thread at a time: a rollout has one set of buffers. Transforms of
    torch.func do not, since they have one tensor stand for many. With another rule than FULL gradients are that rule's,
    and no derivatives. A rollout that has run again in between is computed anew before its sweep, with the noise that
    it had.

    Raises:
        ShapeError, AdjointError: no rollout, rule or objective; in the backward pass one that is to be differentiated
            again, which adjoint sweeps are not, or whose controller has changed since.
    """
    if not isinstance(rollout, Rollout):
        raise ShapeError(f"Expected a Rollout to differentiate, got {described(rollout)}.")
    if rollout.forward_only:
        raise AdjointError("Expected a rollout that stores its states, got forward_only=True; build another.")
    check_rule(rule)
    if objective is not None:
        check_cost(objective)
    elif len(rollout.plan.segments) > 1:
        raise AdjointError(
            "Expected an objective for a rollout cut into segments, got none, and not all states are in memory; give "
            "one, or drop the memory budget."
        )
    cost = _Weighted(objective) if objective is not None else _Products()

    def apply(initial: torch.Tensor, parameters: torch.Tensor | None = None) -> Any:
        for name, given in (("initial", initial), *((("parameters", parameters),) if parameters is not None else ())):
            if not isinstance(given, torch.Tensor):
                raise ShapeError(f"Expected {name} as a tensor of torch, got {described(given)}.")
        theta = rollout.controller.theta  # type: ignore[attr-defined]
        try:
            return _Sweep.apply(rollout, rule, cost, objective, initial, theta, parameters)
        except RuntimeError as error:
            if "functorch" not in str(error):
                raise
            raise AdjointError(
                "Expected a rollout that torch's autograd differentiates, by backward() or torch.autograd.grad, got a "
                "transform of torch.func; give it a batch instead of mapping over samples."
            ) from error

    return apply


class _Weighted(Objective):
    """Another objective times a weight for each sample."""

    def __init__(self, of: Any, weights: torch.Tensor | None = None):
        self.of, self.weights = of, weights

    def given(self, parameters):
        given = getattr(self.of, "given", None)
        return self if given is None else _Weighted(given(parameters), self.weights)

    def running(self, states, controls, steps):
        costs = self.of.running(states, controls, steps)
        return None if costs is None else costs * self.weights

    def final(self, state):
        cost = self.of.final(state)
        return None if cost is None else cost * self.weights


class _Products(Objective):
    """⟨g_x, x⟩ + ⟨g_u, u⟩, whose derivatives are the gradients g that arrive from what comes after."""

    states: torch.Tensor
    controls: torch.Tensor

    def running(self, states, controls, steps):
        by_state = (states * self.states[steps]).flatten(2).sum(2)
        return by_state + (controls * self.controls[steps]).flatten(2).sum(2)

    def final(self, state):
        return (state * self.states[-1]).flatten(1).sum(1)


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rollout, rule, cost, objective, initial, theta, parameters):
        ctx.rollout, ctx.rule, ctx.cost = rollout, rule, cost
        ctx.save_for_backward(initial, theta, *(() if parameters is None else (parameters,)))
        losses = _run(rollout, initial, parameters, objective)
        ctx.run, ctx.seeded = rollout.turn, rollout.parts.seeded
        ctx.constants = rollout.system.versions()
        ctx.acted = {name: value.detach().clone() for name, value in _acts_by(rollout.controller).items()}
        if losses is not None:
            return losses
        return rollout.states.detach().clone(), rollout.controls.detach().clone()

    @staticmethod
    def backward(ctx, *arriving):
        if torch.is_grad_enabled():
            raise AdjointError(
                "Expected a rollout to be differentiated once, got create_graph=True; adjoint sweeps have no "
                "derivatives of their own."
            )
        parts, later = ctx.rollout.parts, ctx.rollout.parts.seeded
        if later == ctx.seeded:
            return _Sweep._swept(ctx, arriving)
        parts.seed(*ctx.seeded)  # whatever is computed again has the noise that it had
        try:
            return _Sweep._swept(ctx, arriving)
        finally:
            parts.seed(*later)

    @staticmethod
    def _swept(ctx, arriving):
        rollout, cost = ctx.rollout, ctx.cost
        initial, theta, *rows = ctx.saved_tensors
        if rollout.turn != ctx.run:
            now = _acts_by(rollout.controller)
            changed = [name for name, value in ctx.acted.items() if not torch.equal(value, now[name])]
            if ctx.constants != rollout.system.versions():
                raise AdjointError(
                    "Expected the adjoint of a rollout whose system is as it was, got another constant of "
                    f"{rollout.system.name} since; sweep before it is changed, or write a VectorSystem, whose "
                    "parameters may vary."
                )
            if changed:
                raise AdjointError(
                    f"Expected the adjoint of a rollout whose controller is as it was, got another {changed[0]} since; "
                    "sweep before the controller is changed."
                )
            _run(rollout, initial, rows[0] if rows else None, None)
            ctx.run = rollout.turn
        if isinstance(cost, _Weighted):
            cost.weights = arriving[0].contiguous()
        else:
            cost.states, cost.controls = (gradient.contiguous() for gradient in arriving)
        with torch.enable_grad(), warnings.catch_warnings():
            if isinstance(cost, _Products):  # of which one part at a time may arrive
                warnings.simplefilter("ignore", EvenflowWarning)
            found = rollout.backward([ctx.rule], cost, physical=ctx.needs_input_grad[-1])
        members = rollout.controller.members
        of_theta = found.parameters[ctx.rule] * (rollout.batch // members)
        physical = found.physical.get(ctx.rule)
        return None, None, None, None, found.initial[ctx.rule], of_theta.view_as(theta), physical


def _acts_by(controller: Any) -> dict[str, torch.Tensor]:
    """What a controller computes with, by name."""
    constants = getattr(controller, "constants", None)
    return {"theta": controller.theta, **({} if constants is None else constants())}


@plain_torch
def _run(rollout: Rollout, initial: torch.Tensor, parameters: torch.Tensor | None, cost: Any) -> torch.Tensor | None:
    """Forward from copies that the rollout may keep."""
    given = None if parameters is None else parameters.detach().contiguous()
    return rollout.forward(initial.detach().contiguous(), cost, given)

"""What is said of an objective once, when a rollout is first swept with it."""

import warnings
from collections.abc import Mapping

import torch

from engine.contracts import described, differentiating
from engine.errors import AdjointError, EvenflowWarning
from engine.rules import AdjointRule
from engine.trajectory import Cost, Trajectory


def check_costs(rollout: Trajectory, cost: Cost) -> None:
    """AdjointError if there are no costs, or they change with states or controls and none has a gradient.

    A warning if only some have. The first segment is restored.
    """
    states, controls = rollout.states[: rollout.block], rollout.controls[: rollout.block]
    steps, parts = torch.arange(len(controls), device=states.device), rollout.parts
    evaluations = {
        "running": lambda x, u: parts.priced(cost, parts.rows(len(u))).running(x[: len(u)], u, steps),
        "final": lambda x, u: parts.priced(cost, parts.rows()).final(x[0]),
    }
    detached, differentiable, given = [], False, False
    with differentiating(cost):
        for name, evaluate in evaluations.items():
            value = evaluate(states.clone().requires_grad_(), controls.clone().requires_grad_())
            given |= value is not None
            if value is None or value.requires_grad:
                differentiable |= value is not None
                continue
            other = evaluate(1.25 * states + 0.1, 1.25 * controls + 0.1)
            if other is not None and not torch.equal(value.nan_to_num(), other.nan_to_num()):
                detached.append(name)
    if not given:
        raise AdjointError(
            f"Expected an objective with a running or a final cost, got {described(cost)} whose methods both return "
            "None; return the cost (a `return` left out?)."
        )
    if not detached:
        return
    told = (
        f"Expected costs that torch can differentiate, got {described(cost)} whose {' and '.join(detached)} costs "
        "depend on states or controls but have no gradient; look for detach, no_grad, item, numpy or comparisons."
    )
    if not differentiable:
        raise AdjointError(told)
    warnings.warn(told, EvenflowWarning, stacklevel=5)


def tell_of_no_gradient(cost: Cost, losses: torch.Tensor, gradients: Mapping[AdjointRule, torch.Tensor]) -> None:
    """Warn of losses [B] that are not zero with gradients that are; not where every rule stops the physics path."""
    seen = any(rule.uses_physics for rule in gradients)
    if seen and bool(losses.any()) and not any(bool(gradient.any()) for gradient in gradients.values()):
        warnings.warn(
            f"Expected a cost that the controls change, got {described(cost)} with losses up to "
            f"{float(losses.abs().max()):.3g} whose gradient is exactly zero under "
            f"{', '.join(map(str, gradients))}; see whether it is constant or depends on the first state alone.",
            EvenflowWarning,
            stacklevel=5,
        )

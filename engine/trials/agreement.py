"""Whether a rule says the same of one sample, in a kernel, as of a batch of tensors."""

import math

import taichi as ti
import torch

from engine import runtime
from engine.errors import AdjointError
from engine.launch import prepare
from engine.rules import AdjointRule

# Steps at which both are asked; the rows of a trial are one sample at each.
_STEPS = 24
_ACCURACY = {torch.float32: 1e-4, torch.float64: 1e-9}


def check_agreement(rule: AdjointRule, state_shape: tuple[int, ...]) -> None:
    """AdjointError unless `on_sample` makes of random terms what the rule makes of them, at each of the first steps."""
    count, dtype = math.prod(state_shape), runtime.current().dtype
    draw = torch.rand(3, _STEPS, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = (4.0 * draw - 2.0).to(dtype=dtype, device=runtime.current().device)
    found = torch.zeros_like(terms[0])
    prepare(_apply, *terms, found, count, rule, owner=f" by {type(rule).__name__}.on_sample")()
    direct, physics, policy = (term.view(_STEPS, 1, *state_shape) for term in terms)
    for t in range(_STEPS):
        wanted = rule(direct[t], physics[t] if rule.uses_physics else None, policy[t] if rule.uses_policy else None, t)
        error = float((found[t] - wanted.flatten()).abs().max())
        if not error <= _ACCURACY[dtype] * float(terms.abs().max()):
            raise AdjointError(
                f"Expected {type(rule).__name__}.on_sample to give what calling the rule gives, got adjoints of terms "
                f"of size 2 that differ by {error:.2g} at step {t}; mend one of them or leave on_sample out."
            )


@ti.kernel
def _apply(
    direct: ti.types.ndarray(ndim=2),
    physics: ti.types.ndarray(ndim=2),
    policy: ti.types.ndarray(ndim=2),
    adjoint: ti.types.ndarray(ndim=2),
    count: ti.template(),
    rule: ti.template(),
):
    ti.loop_config(serialize=True)
    for t in range(direct.shape[0]):
        by_cost = ti.Vector([direct[t, i] for i in range(count)])
        by_physics = ti.Vector([physics[t, i] for i in range(count)])
        by_policy = ti.Vector([policy[t, i] for i in range(count)])
        result = rule.on_sample(by_cost, by_physics, by_policy, t)
        for i in ti.static(range(count)):
            adjoint[t, i] = result[i]

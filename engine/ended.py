"""Samples that have ended: what a zero adjoint or a masked cost meets where a state or a Jacobian is not finite.

An objective that ends a sample early (a mask on its costs) leaves λ = 0 after the end, where the state may go on to
blow up. In real arithmetic Aᵀ0 = Bᵀ0 = Kᵀ0 = Πᵀ0 = 0 whatever the Jacobian; in floating point 0·∞ is NaN. So, sample
by sample and step by step:

    λ_{t+1} = 0  ⟹  physics term 0, μ_t = ∂ℓ_t/∂u_t, and no part in the gradient of physical parameters
    μ_t = 0      ⟹  policy term 0, and no part in the parameter gradient, nor in that of what an observation reads
    ℓ_t finite at a component of x_t or u_t that is not  ⟹  ∂ℓ_t/∂(that component) = 0: it was not used
    ℓ_t = 0 where a component of x_t or u_t is not finite, and ∂ℓ_t/∂p is NaN  ⟹  ∂ℓ_t/∂p = 0: it was masked

The gradient then is that of the rollout that stops at the end. Nothing else is mended: what a nonzero adjoint meets
stays as it is. Sweeps fused by `VectorSystem` do this in the kernel. All others, and pull-backs to the parameters, run
as ever; only what comes out not finite, at a sample that had ended, is done again with care.
"""

import warnings

import torch

from engine.errors import EvenflowWarning
from engine.plan import Segment
from engine.trajectory import Trajectory


def without_unused(cost: torch.Tensor, gradient: torch.Tensor, at: torch.Tensor, where: str) -> torch.Tensor:
    """`gradient` of costs [...] with respect to `at` [..., *shape], 0 at components that a finite cost cannot use.

    A finite cost with a gradient that is NaN elsewhere is told once.
    """
    unknown, known = (
        torch.isnan(gradient),
        torch.isfinite(cost.detach()).view(*cost.shape, *[1] * (at.dim() - cost.dim())),
    )
    gradient = gradient.masked_fill(unknown & known & ~torch.isfinite(at), 0.0)
    if bool((torch.isnan(gradient) & known).any()):
        warnings.warn(
            f"Expected a finite cost to have a gradient that is a number, got nan with respect to {where}: torch.where "
            "multiplies the derivatives of what it masks by 0, and 0·∞ is nan; mask the arguments too.",
            EvenflowWarning,
            stacklevel=2,
        )
    return gradient


def zero_rows(rows: torch.Tensor) -> torch.Tensor:
    """Which rows [b, ...] are zero throughout, as [b]."""
    return (rows == 0).flatten(1).all(1)


def spoilt(adjoints: torch.Tensor, cotangents: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Samples [b] where a zero of adjoints [S+1, b, ...] or of cotangents [S, b, ...] met something not finite.

    So may a zero adjoint where `rows` [b, q], gradients with respect to physical parameters, are not finite.
    """
    still = (adjoints[1:] == 0).flatten(2).all(2)
    after = still | (cotangents == 0).flatten(2).all(2)
    bad = ~(torch.isfinite(adjoints[:-1]).flatten(2).all(2) & torch.isfinite(cotangents).flatten(2).all(2))
    found = (after & bad).any(0)
    return found if rows is None else found | (still.any(0) & ~torch.isfinite(rows).all(1))


def pull_back_parameters(
    rollout: Trajectory, part: Segment, cotangents: torch.Tensor, samples: slice, gradient: torch.Tensor
) -> None:
    """Add Σ Πᵀ μ of a segment to `gradient` [members, parameters] without the rows where μ = 0.

    The controller is shown a row that is pulled back anyway in their stead, and then what it saw before.
    `cotangents` are the buffer [slots, B, ...].
    """
    members = rollout.controller.members
    for first, last in part.own_blocks(rollout.block, rollout.horizon):
        states = rollout.states[first:last]
        live = (cotangents[first:last] != 0).flatten(2).any(2)
        live[:, : samples.start] = False
        live[:, samples.stop :] = False
        if not bool(live.any()):
            continue
        saved, shown = states.clone(), states.clone().unflatten(1, (members, -1))
        live = live.unflatten(1, (members, -1))
        anyone = live.nonzero()[0]
        for member in range(members):
            own = live[:, member].nonzero()
            step, row = own[0] if len(own) else (anyone[0], anyone[2])
            donor = saved.unflatten(1, (members, -1))[step, member if len(own) else anyone[1], row]
            shown[:, member][~live[:, member]] = donor
        try:
            _show(rollout, first, last, samples, shown.flatten(1, 2))
            rollout.trace.pull_back_parameters(first, last, states, cotangents[first:last], samples, gradient)
        finally:
            _show(rollout, first, last, samples, saved)


def _show(rollout: Trajectory, first: int, last: int, samples: slice, states: torch.Tensor) -> None:
    rollout.show(first, last, states)
    rollout.trace.linearise(first, last, rollout.states[first:last], samples, None)

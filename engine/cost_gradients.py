"""Derivatives of a rollout's costs by what they are costs of: states, controls, and parameters that vary."""

import torch

from engine import ended
from engine.alignment import aligned
from engine.buffers import SweepBuffers
from engine.contracts import check_tensor, differentiating, modified
from engine.plan import Segment
from engine.trajectory import Cost, Trajectory


def final_gradient(
    rollout: Trajectory, cost: Cost | None, losses: torch.Tensor, direct_rows: torch.Tensor | None
) -> torch.Tensor:
    """∂ℓ_T/∂x_T; the final cost is added to the losses [B], ∂ℓ_T/∂p to `direct_rows` [B, q] if given."""
    rollout.restore(rollout.plan.segments[-1])
    gradient = None
    if cost is not None:
        with differentiating(cost):
            state = aligned(rollout.final_state.detach()).requires_grad_()
            version = state._version
            rows = _rows(rollout, direct_rows)
            value = rollout.parts.priced(cost, rows).final(state)
            if state._version != version:
                raise modified(cost)
            if value is not None:
                check_tensor("a final cost for each sample", value, (rollout.batch,), state)
                if value.requires_grad:
                    gradient, *of_rows = _gradients(value, state, rows)
                    if direct_rows is not None and rows is not None:
                        direct_rows += _of_used_rows(rollout, value, of_rows[0], rows, state)
                    if not rollout.finite(gradient):
                        gradient = ended.without_unused(value, gradient, state, "the final state")
                losses += value.detach()
    if gradient is None:
        gradient = torch.zeros_like(rollout.states[0], requires_grad=False)
    if rollout.states.grad is not None:
        gradient = gradient + rollout.states.grad[rollout.plan.segments[-1].last]
    return gradient


def write_running_gradients(
    rollout: Trajectory,
    cost: Cost | None,
    part: Segment,
    buffers: SweepBuffers,
    losses: torch.Tensor,
    direct_rows: torch.Tensor | None,
) -> None:
    """∂ℓ_t/∂x_t and ∂ℓ_t/∂u_t of a segment, block by block, into the buffers; sums as in `final_gradient`."""
    buffers.direct_states.zero_()
    buffers.direct_controls.zero_()
    blocks = part.blocks(rollout.block, rollout.horizon) if cost is not None else []
    for first, last in blocks:
        times = slice(part.base + first, part.base + last)
        with differentiating(cost):
            states = aligned(rollout.states[first:last].detach()).requires_grad_()
            controls = aligned(rollout.controls[times].detach()).requires_grad_()
            version = states._version, controls._version
            steps = torch.arange(times.start, times.stop, device=states.device)
            rows = _rows(rollout, direct_rows, len(states))
            values = rollout.parts.priced(cost, rows).running(states, controls, steps)
            if (states._version, controls._version) != version:
                raise modified(cost)
            if values is None:
                break
            rollout.check_running(cost, values, states, controls, times.start)  # type: ignore[arg-type]
            values = rollout.parts.masked(values, steps)
            found = _gradients(values, states, controls, rows) if values.requires_grad else ()
        into = (buffers.direct_states, "states"), (buffers.direct_controls, "controls")
        for (buffer, name), gradient, at in zip(into, found, (states, controls), strict=False):
            if not rollout.finite(gradient):
                gradient = ended.without_unused(values, gradient, at, f"{name} of steps {times.start} on")
            buffer[first:last].copy_(gradient)
        inside = slice(max(first, part.first) - first, min(last, part.last) - first)
        if direct_rows is not None and rows is not None and found:
            direct_rows += _of_used_rows(rollout, values, found[2], rows, states, controls)[inside].sum(0)
        losses += values.detach()[inside].sum(0)
    if rollout.states.grad is not None:
        buffers.direct_states.add_(rollout.states.grad[: len(buffers.direct_states)])
    if rollout.controls.grad is not None:
        buffers.direct_controls[: rollout.horizon].add_(rollout.controls.grad)


def _rows(rollout: Trajectory, direct_rows: torch.Tensor | None, *leading: int) -> torch.Tensor | None:
    """The samples' parameters [*leading, B, q], if any vary; to differentiate by where ∂ℓ/∂p are asked for."""
    rows = rollout.parts.rows(*leading)
    return rows if rows is None or direct_rows is None else rows.clone().requires_grad_()


def _gradients(values: torch.Tensor, *leaves: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """By those leaves that are there and require a gradient."""
    asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    ones = torch.ones_like(values, requires_grad=False)
    return torch.autograd.grad(values, asked, ones, allow_unused=True, materialize_grads=True)


def _of_used_rows(
    rollout: Trajectory, values: torch.Tensor, gradient: torch.Tensor, rows: torch.Tensor, *at: torch.Tensor
) -> torch.Tensor:
    """∂ℓ/∂p [..., q] at `rows`, without those of costs [...] that are masked where `at` [..., *shape] is not finite."""
    if rollout.finite(gradient):
        return gradient
    masked = values.detach() == 0
    masked &= ~torch.stack([torch.isfinite(one).flatten(values.dim()).all(-1) for one in at]).all(0)
    unused = rows.detach().masked_fill(masked.unsqueeze(-1), torch.inf)
    return ended.without_unused(values, gradient, unused, "physical parameters")

"""The iterative linear-quadratic regulator, beside which open loops are set."""

import torch
from torch.func import grad, hessian, vmap

from engine import System
from engine.trajectory import Cost


def ilqr(
    system: System, objective: Cost, initial: torch.Tensor, controls: torch.Tensor, iterations: int = 50
) -> tuple[torch.Tensor, float]:
    """States [T+1, n] and cost of the controls [T, m] that it finds for a system of vectors, from `controls` on.

    A_t and B_t come from the system's pull-back, the derivatives of the costs from torch. Curvatures that are negative
    count by their size, so that steps go downhill where the cost is not convex.

    Source: Li and Todorov, "Iterative linear quadratic regulator design for nonlinear biological movement systems"
    (2004).

    Args:
        initial: [n].
    """
    states, cost = _simulate(system, objective, initial, controls)
    for _ in range(iterations):
        gains, steps = _feedback(system, objective, states, controls)
        for reach in 0.5 ** torch.arange(12.0):
            tried, found, its_cost = _follow(system, objective, states, controls + reach * steps, gains)
            if its_cost < cost:
                controls, states, cost = tried, found, its_cost
                break
    return states, cost


def _simulate(
    system: System, objective: Cost, initial: torch.Tensor, controls: torch.Tensor
) -> tuple[torch.Tensor, float]:
    nothing = controls.new_zeros(len(controls), controls.shape[1], len(initial))
    before = initial.expand(len(controls) + 1, -1)
    return _follow(system, objective, before, controls, nothing)[1:]


def _follow(
    system: System, objective: Cost, before: torch.Tensor, controls: torch.Tensor, gains: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Controls with feedback on what differs from the states `before`, their states, and their cost."""
    states, acts = [before[0]], []
    for t, (control, gain) in enumerate(zip(controls, gains, strict=True)):
        acts.append(control + gain @ (states[t] - before[t]))
        states.append(system.step(states[t][None], acts[t][None])[0])
    found, acted = torch.stack(states), torch.stack(acts)
    running = objective.running(found[:-1, None], acted[:, None], torch.arange(len(acted)))
    final = objective.final(found[-1:])
    return acted, found, sum(float(costs.sum()) for costs in (running, final) if costs is not None)


def _feedback(
    system: System, objective: Cost, states: torch.Tensor, controls: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gains [T, m, n] and steps [T, m], best for the linear system and the quadratic cost about a trajectory."""
    T, m, n = len(controls), controls.shape[1], states.shape[1]
    units = torch.eye(n).to(states).repeat(T, 1)
    A, B = system.pull_back(states[:-1].repeat_interleave(n, 0), controls.repeat_interleave(n, 0), units)
    A, B = A.view(T, n, n), B.view(T, n, m)

    def running(both, t):
        costs = objective.running(both[None, None, :n], both[None, None, n:], t[None])
        return both.new_zeros(()) if costs is None else costs.sum()

    def final(state):
        cost = objective.final(state[None])
        return state.new_zeros(()) if cost is None else cost.sum()

    both, times = torch.cat([states[:-1], controls], 1), torch.arange(T)
    slopes, curves = vmap(grad(running))(both, times), vmap(hessian(running))(both, times)
    slope, curve = grad(final)(states[-1]), _upward(hessian(final)(states[-1]))
    gains, steps = controls.new_zeros(T, m, n), torch.zeros_like(controls)
    for t in reversed(range(T)):
        way = torch.cat([A[t], B[t]], 1)  # of (x_t, u_t) to x_{t+1}
        of_both, bent = slopes[t] + way.T @ slope, curves[t] + way.T @ curve @ way
        inverse = torch.linalg.inv(_upward(bent[n:, n:]))
        gains[t], steps[t] = -inverse @ bent[n:, :n], -inverse @ of_both[n:]
        slope = of_both[:n] + gains[t].T @ of_both[n:]
        curve = _upward(bent[:n, :n] + bent[:n, n:] @ gains[t])
    return gains, steps


def _upward(curve: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix with the sizes of its eigenvalues."""
    bends, axes = torch.linalg.eigh(0.5 * (curve + curve.T))
    return axes @ bends.abs().diag() @ axes.T

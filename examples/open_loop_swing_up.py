"""A swing-up by forces alone, beside an iLQR: python examples/open_loop_swing_up.py [PICTURE.png]"""

import sys

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu", "float64")
system, horizon, effort = ef.CartPole(), 100, 1e-4
first = torch.randn(horizon, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
hanging = torch.tensor([[0.0, 0.0, torch.pi, 0.0]], dtype=torch.float64)


class SwingUp(ef.Objective):
    """10 (1 - cosθ) + 0.1 (x² + ẋ² + θ̇²) at the end, and 1e-4 F² at every step."""

    def running(self, states, controls, steps):
        return effort * controls[..., 0].square()

    def final(self, state):
        return 10.0 * (1.0 - state[:, 2].cos()) + 0.1 * state[:, [0, 1, 3]].square().sum(1)


def ilqr(iterations=50):
    """The iterative linear-quadratic regulator of Li and Todorov (2004), with the pull-back for A and B."""
    forces, objective = first.clone(), SwingUp()
    final = lambda state: objective.final(state[None])[0]  # noqa: E731

    def simulate(forces, gains=None, before=None):
        states = [hanging[0]]
        for t in range(horizon):
            if gains is not None:
                forces[t] += gains[t] @ (states[t] - before[t])
            states.append(system.step(states[t][None], forces[t][None])[0])
        return torch.stack(states), effort * forces.square().sum() + final(states[-1])

    states, cost = simulate(forces)
    for _ in range(iterations):
        units = torch.eye(4, dtype=torch.float64).repeat(horizon, 1)
        A, B = system.pull_back(states[:-1].repeat_interleave(4, 0), forces.repeat_interleave(4, 0), units)
        A, B = A.view(horizon, 4, 4), B.view(horizon, 4, 1)
        slope, (bends, axes) = (
            torch.func.grad(final)(states[-1]),
            torch.linalg.eigh(torch.func.hessian(final)(states[-1])),
        )
        curve = axes @ bends.abs().diag() @ axes.T  # downhill steps where the cost is not convex
        gains, steps = [torch.zeros(1, 4)] * horizon, torch.zeros(horizon, 1, dtype=torch.float64)
        for t in reversed(range(horizon)):
            of_force, bent = 2 * effort * forces[t] + B[t].T @ slope, 2 * effort + B[t].T @ curve @ B[t]
            gains[t], steps[t] = -B[t].T @ curve @ A[t] / bent, -of_force / bent[0]
            slope = A[t].T @ slope + gains[t].T @ of_force
            curve = A[t].T @ curve @ (A[t] + B[t] @ gains[t])
        for reach in 0.5 ** torch.arange(12.0):
            tried = forces + reach * steps
            found, its_cost = simulate(tried, gains, states)
            if its_cost < cost:
                forces, states, cost = tried, found, its_cost
                break
    return states, float(cost)


loop = ef.OpenLoop((1,), horizon, dtype=torch.float64)
loop.theta.data.copy_(first.T)
rollout = ef.Rollout(system, loop, horizon, 1, observation=ef.Observation.clock())
loss, costs = ef.differentiable(rollout, objective=SwingUp()), []
optimiser = torch.optim.LBFGS([loop.theta], max_iter=500, line_search_fn="strong_wolfe")


def evaluate():
    optimiser.zero_grad()
    cost = loss(hanging).sum()
    cost.backward()
    costs.append(cost.item())
    return cost


optimiser.step(evaluate)
states, reference = ilqr()
print(f"cost {min(costs):.5f} by L-BFGS on {horizon} forces, {reference:.5f} by iLQR")
assert min(costs) < 1.05 * reference
plt.plot(rollout.states.detach()[:, 0, 2], label="angle, open loop")
plt.plot(states[:, 2], label="angle, iLQR")
plt.xlabel("step")
plt.legend()
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "swing-up.png")

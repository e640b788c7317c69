"""A swing-up by forces alone, beside an iLQR: python examples/open_loop_swing_up.py [PICTURE.png]"""

import sys

import matplotlib.pyplot as plt
import torch

import evenflow as ef
from benchmarks.peers.ilqr import ilqr

ef.init("cpu", "float64")
torch.set_default_dtype(torch.float64)


class SwingUp(ef.Objective):
    """10 (1 - cosθ) + 0.1 (x² + ẋ² + θ̇²) at the end, and 1e-4 F² at every step."""

    def running(self, states, controls, steps):
        return 1e-4 * controls[..., 0].square()

    def final(self, state):
        return 10.0 * (1.0 - state[:, 2].cos()) + 0.1 * state[:, [0, 1, 3]].square().sum(1)


system, loop, hanging = ef.CartPole(), ef.OpenLoop((1,), horizon=100), torch.tensor([[0.0, 0.0, torch.pi, 0.0]])
loop.theta.data = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
states, reference = ilqr(system, SwingUp(), hanging[0], loop.theta.detach().view(100, 1))
rollout = ef.Rollout(system, loop, horizon=100, batch=1, observation=ef.Observation.clock())
loss = ef.differentiable(rollout, objective=SwingUp())
optimiser = torch.optim.LBFGS([loop.theta], max_iter=500, line_search_fn="strong_wolfe")


def evaluate():
    optimiser.zero_grad()
    cost = loss(hanging).sum()
    cost.backward()
    return cost


optimiser.step(evaluate)
print(f"cost {loss(hanging).item():.5f} by L-BFGS on 100 forces, {reference:.5f} by iLQR")
axes = plt.subplots(subplot_kw={"xlabel": "step", "ylabel": "angle, rad"})[1]
axes.plot(rollout.states.detach()[:, 0, 2], label="open loop")
axes.plot(states[:, 2], "--", label="iLQR")
axes.legend()
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "swing-up.png")

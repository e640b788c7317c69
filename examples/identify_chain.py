"""Masses and lengths of a chain's links from noisy trajectories: python examples/identify_chain.py [PICTURE.png]"""

import sys

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu", "float64")
torch.manual_seed(0)
horizon, batch = 100, 16
forces = ef.OpenLoop((1,), horizon, members=batch, dtype=torch.float64)  # known, another for each trajectory
forces.theta.requires_grad_(False).copy_(5.0 * torch.randn(batch, horizon, dtype=torch.float64))
rollout = ef.Rollout(ef.CartPendulum(2), forces, horizon, batch, observation=ef.Observation.clock(),
                     parameters=("link_mass", "half_length"))  # fmt: skip
simulate = ef.differentiable(rollout)  # (initial states, parameters) -> states, controls, as an operation of torch
initial, true = torch.randn(batch, 6, dtype=torch.float64), torch.tensor([0.13, 0.42], dtype=torch.float64)
exact = simulate(initial, true.expand(batch, 2))[0]
measured = exact + 0.02 * torch.randn_like(exact)

logarithm = torch.tensor([0.1, 0.5], dtype=torch.float64).log().requires_grad_()
optimiser, path = torch.optim.LBFGS([logarithm], max_iter=50, line_search_fn="strong_wolfe"), []


def misfit():
    optimiser.zero_grad()
    loss = (simulate(initial, logarithm.exp().expand(batch, 2))[0] - measured).square().mean()
    loss.backward()
    path.append(logarithm.detach().exp())
    return loss


optimiser.step(misfit)
errors = (path[-1] / true - 1).abs()
print(f"mass {path[-1][0]:.5f} kg, half length {path[-1][1]:.5f} m, off by {100 * errors.max():.3f}%")
assert errors.max() < 0.01
plt.plot(torch.stack(path) / true, label=["mass", "half length"])
plt.xlabel("evaluation")
plt.ylabel("found / true")
plt.legend()
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "identified.png")

"""Masses and lengths of a chain's links from noisy trajectories: python examples/identify_chain.py [PICTURE.png]"""

import sys

import matplotlib.pyplot as plt
import torch
from scipy.optimize import minimize

import evenflow as ef

ef.init("cpu", "float64")
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
forces = ef.OpenLoop((1,), horizon=100, members=16)  # known, another for each trajectory
forces.theta.requires_grad_(False).copy_(5.0 * torch.randn(16, 100))
names, seen = ("link_mass", "half_length"), ef.Observation.clock()
rollout = ef.Rollout(ef.CartPendulum(2), forces, horizon=100, batch=16, observation=seen, parameters=names)
simulate = ef.differentiable(rollout)  # (initial states, parameters) -> states, controls, as an operation of torch
initial, true = torch.randn(16, 6), torch.tensor([0.13, 0.42])
exact = simulate(initial, true.expand(16, 2))[0]
measured, path = exact + 0.02 * torch.randn_like(exact), []


def misfit(logarithm):
    found = torch.tensor(logarithm, requires_grad=True)
    loss = (simulate(initial, found.exp().expand(16, 2))[0] - measured).square().mean()
    loss.backward()
    path.append(found.detach().exp() / true)
    return loss.item(), found.grad.numpy()


minimize(misfit, torch.tensor([0.1, 0.5]).log(), jac=True, method="L-BFGS-B")
(mass, length), error = path[-1] * true, 100 * (path[-1] - 1).abs().max()
print(f"mass {mass:.5f} kg, half length {length:.5f} m, off by {error:.3f}%")
axes = plt.subplots(subplot_kw={"xlabel": "evaluation", "ylabel": "found / true"})[1]
axes.plot(torch.stack(path), label=["mass", "half length"])
axes.legend()
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "identified.png")

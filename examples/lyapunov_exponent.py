"""How fast errors grow in the Kuramoto-Sivashinsky flow: python examples/lyapunov_exponent.py [PICTURE.png [UNITS]]"""

import sys

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu", "float64", threads=1)
system, count, apart = ef.KuramotoSivashinsky(), 64, 1e-7
units = int(sys.argv[2]) if len(sys.argv) > 2 else 100
draws = torch.Generator().manual_seed(0)
steps = round(1.0 / system.dt)  # of a unit of time
quiet = ef.OpenLoop(system.control_shape, horizon=steps, dtype=torch.float64)
rollout = ef.Rollout(system, quiet, horizon=steps, batch=2 * count, observation=ef.Observation.clock())
state = system.attractor(count, draws, duration=60.0)
away, growth = torch.randn(state.shape, generator=draws, dtype=torch.float64), []
for _ in range(units):
    rollout.forward(torch.cat([state, state + apart * torch.nn.functional.normalize(away, dim=1)]))
    state, other = rollout.states[-1].detach().clone().split(count)
    away = other - state
    growth.append(torch.log(away.norm(dim=1) / apart))
rates = torch.stack(growth[units // 5 :]).mean(0)  # once the neighbours lie in the direction that grows fastest
print(f"largest Lyapunov exponent {rates.mean():.4f} with a standard error of {rates.std() / count**0.5:.4f}")
axes = plt.subplots(subplot_kw={"xlabel": "time", "ylabel": "logarithm of an error's growth"})[1]
grown = torch.cat([torch.zeros(1, count), torch.stack(growth)]).cumsum(0)
axes.plot(grown, color="0.7", linewidth=0.5)
axes.plot(grown.mean(1), label=f"mean, {rates.mean():.3f} a unit of time at last")
axes.legend()
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "lyapunov.png")

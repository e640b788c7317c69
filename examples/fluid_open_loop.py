"""How far pushes alone gather a fluid: python examples/fluid_open_loop.py [PARTICLES [STARTS [UPDATES [SEED]]]]

What a controller has to learn from many starts is found here for every start by itself, without seeing the fluid: the
least that is left to do for a controller. A picture, fluid-open-loop.png, shows the losses as shares of no control's.
"""

import sys

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu", threads=1)
particles, starts, updates, seed = map(int, [*sys.argv[1:], *("5000", "16", "40", "0")[len(sys.argv) - 1 :]])
task = ef.build_task("fluid", particles=particles, sound_speed=10.0)  # pushes alone drive it beyond the usual 5 too
loops = ef.OpenLoop(task.system.control_shape, task.horizon, members=starts)
rollout = ef.Rollout(task.system, loops, task.horizon, starts, observation=ef.Observation.clock())
initial = task.initial_states(starts, seed, "test", torch.float32)
optimiser, losses = torch.optim.Adam([loops.theta], lr=0.1), []
for _ in range(updates):
    rollout.forward(initial)
    found = rollout.backward([ef.FULL], task.objective)
    gradient = found.parameters[ef.FULL]
    loops.theta.grad = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)  # each along its own direction
    optimiser.step()
    losses.append(found.losses)
losses = torch.stack(losses)
none, least, shares = losses[0].mean(), losses.amin(0).mean(), (losses / losses[0]).amin(0)
print(f"mean loss {none:.4g} without control, {least:.4g} at the least of {updates} updates:", end=" ")
print(f"{least / none:.2f} of it, single starts {shares.min():.2f} to {shares.max():.2f}")
axes = plt.subplots(subplot_kw={"xlabel": "update", "ylabel": "loss / loss without control", "yscale": "log"})[1]
axes.plot(losses / losses[0])
plt.savefig("fluid-open-loop.png")

"""
Chaos: how far back a gradient can be trusted
=============================================

The Kuramoto-Sivashinsky equation is a chaotic flow on a ring. Errors grow by a factor e in some 22 units of time, and
so do gradients on their way back.
"""

# %%
# A rollout without control, from a start on the attractor: time upwards, the ring from left to right.

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu", "float64", threads=1)
HORIZON = 400
task = ef.build_task("kuramoto-sivashinsky", horizon=HORIZON)
policy = task.policy(members=1, dtype=torch.float64, device=torch.device("cpu"))  # its controls are 0 before training
rollout = ef.Rollout(task.system, policy, HORIZON, batch=4, observation=task.observation)
starts = task.initial_states(4, seed=0, stream="test", dtype=torch.float64)
rollout.forward(starts)
flow = rollout.states.detach()[:, 0]

axes = plt.subplots(subplot_kw={"xlabel": "place on the ring", "ylabel": "step"})[1]
image = axes.imshow(flow, aspect="auto", origin="lower", cmap="RdBu_r")

# %%
# Two starts that differ in the eighth digit are apart by a visible amount only much later: the distance grows as e to
# the time over the Lyapunov time, once it has found the direction that grows.

rollout.forward(starts + 1e-8 * torch.randn(starts.shape, generator=torch.Generator().manual_seed(0)))
distance = (rollout.states.detach()[:, 0] - flow).norm(dim=1)

# %%
# The adjoint of the last state, carried back to the start over longer and longer horizons, does the same. M is the
# physics path alone; before training the controls are 0 whatever the state, so that R's adjoint is the same.


class LastPlace(ef.Objective):
    """The flow at one place at the end."""

    def final(self, state):
        return state[:, 0]


horizons, sizes = (25, 50, 100, 200, 400), []
for horizon in horizons:
    shorter = ef.Rollout(task.system, policy, horizon, batch=4, observation=task.observation)
    with ef.RolloutTape(ef.PHYSICS_ONLY) as tape:
        shorter(starts, LastPlace())
    sizes.append(float(tape.gradients(shorter).initial[ef.PHYSICS_ONLY].norm(dim=1).mean()))
print({horizon: f"{size:.3g}" for horizon, size in zip(horizons, sizes, strict=True)})

axes = plt.subplots(subplot_kw={"xlabel": "steps", "ylabel": "size", "yscale": "log"})[1]
axes.plot(range(1, HORIZON + 1), distance[1:] / distance[1], label="distance of two starts, first step = 1")
axes.plot(horizons, sizes, "o-", label="|λ₀| against the horizon")
legend = axes.legend()
assert sizes[-1] > 10 * sizes[0]

# %%
# What an adjoint rule does about it is visible at once: a decay brings the growth down, a window cuts it.

rollout.forward(starts)
rules = {
    "M": ef.PHYSICS_ONLY,
    "decay(M, 0.98)": ef.Decay(ef.PHYSICS_ONLY, 0.98),
    "truncate(M, 44)": ef.Truncate(ef.PHYSICS_ONLY, 44),
}
with ef.RolloutTape(*rules.values()) as tape:
    rollout(starts, LastPlace())
found = tape.gradients(rollout).initial
for name, rule in rules.items():
    print(f"{name}: |λ₀| = {float(found[rule].norm(dim=1).mean()):.3g}")
assert float(found[rules["decay(M, 0.98)"]].norm()) < float(found[rules["M"]].norm())
assert float(found[rules["truncate(M, 44)"]].norm()) == 0.0

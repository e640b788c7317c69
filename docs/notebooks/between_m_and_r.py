"""
Between M and R
===============

C keeps the components of M on which R agrees in sign. ``bisect(M, R)`` adds both at the size of M instead, and so goes
along the bisector of their angle. Where do they stop? Two parameters are enough to see it.
"""

# %%
# Three coupled states drift apart without control, and a linear controller sees two mixtures of them. Restricted so,
# M's zero is not R's: what a control does to later controls matters.

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu", "float64", threads=1)
SEEN = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]], dtype=torch.float64)


class Restricted(ef.Policy):
    """u = θ₁ (x₁ + x₃/2) + θ₂ (x₂ - x₃/2)."""

    def __init__(self, members=1):
        super().__init__((3,), (1,), 2, members, torch.float64)

    def forward(self, state):
        rows = (state @ SEEN).view(self.members, -1, 2)
        return (rows * self.theta.unsqueeze(1)).sum(2).view(*state.shape[:-1], 1)

    def initialise(self, member, generator):
        self.theta.data[member] = 0.0


system = ef.LinearSystem([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.1, 0.0, 1.0]], [[0.0], [0.1], [0.05]])
objective = ef.Quadratic((1.0, 0.3, 0.1), 0.05)
starts = torch.eye(3, dtype=torch.float64)
names = ("R", "M", "C", "bisect(M, R)")


def fields(count):
    """θ [n, 2] -> the loss [n] and each gradient [n, 2] at n points, one member for each."""
    policy = Restricted(count)
    rollout = ef.Rollout(system, policy, 60, 3 * count)

    def at(theta):
        policy.theta.data.copy_(theta)
        rollout.forward(starts.repeat(count, 1))
        found = rollout.backward([ef.FULL, ef.PHYSICS_ONLY], objective)
        combined = {name: ef.gradient_named(name).estimator.combine(found.parameters) for name in names}
        return found.losses.view(-1, 3).mean(1), combined

    return at


# %%
# All four descend from no control at all: along their own gradient, in steps of at most 0.05 that become shorter.

gradients_at, points = fields(len(names)), torch.zeros(len(names), 2, dtype=torch.float64)
path = [points]
for update in range(1000):
    _, found = gradients_at(points)
    steps = torch.stack([found[name][index] for index, name in enumerate(names)])
    steps = steps / steps.norm(dim=1, keepdim=True).clamp_min(1.0)
    points = points - 0.05 * 0.997**update * steps
    path.append(points)
losses, found = gradients_at(points)
for name, loss, point in zip(names, losses, points, strict=True):
    print(f"{name}: loss {loss:.3g} at θ = ({point[0]:.2f}, {point[1]:.2f})")

# %%
# Lines of equal loss, and the four ways. C stops as soon as both signs differ, in a whole region. The bisector stops
# only where M and R point against each other, on the way to M's zero: closer to the minimum, but not in it.

across, along = torch.linspace(-7.0, 1.0, 61, dtype=torch.float64), torch.linspace(-6.0, 1.0, 61, dtype=torch.float64)
grid = torch.cartesian_prod(across, along)
height = fields(len(grid))(grid)[0].view(61, 61).log10()
axes = plt.subplots(subplot_kw={"xlabel": "θ₁", "ylabel": "θ₂", "title": "log₁₀ of the loss"})[1]
lines = axes.contour(across, along, height.T, torch.linspace(float(height.min()), 2.5, 28), cmap="Greys_r", alpha=0.6)
for index, (name, style) in enumerate(zip(names, ("-", ":", "-.", "--"), strict=True)):
    way = torch.stack(path)[:, index]
    axes.plot(*way.T, style, linewidth=2, label=name)
    axes.plot(*way[-1], "o", color=axes.lines[-1].get_color())
legend = axes.legend()

# %%
# What stops them: C where no component agrees, the bisector where the cosine is -1. With a single parameter there is
# only one direction and its opposite, so the bisector is twice C, and stops where C does.

at_c = {name: found[name][names.index("C")] for name in names}
at_bisector = {name: found[name][names.index("bisect(M, R)")] for name in names}
cosine = torch.nn.functional.cosine_similarity(at_bisector["M"], at_bisector["R"], 0)
print(f"at C's end signs agree in {int((at_c['M'] * at_c['R'] > 0).sum())} of 2 components")
print(f"at the bisector's end the cosine of M and R is {cosine:.4f}")
assert losses[0] < losses[3] < losses[2] < losses[1]
assert cosine < -0.99

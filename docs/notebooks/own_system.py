"""
A system of your own, checked
=============================

A bead on a parabola that a force pushes: the step is one Taichi kernel, its adjoint comes from Taichi, and both are
checked before anything is trained on them.
"""

# %%
# The equation of motion of a bead on the curve y = x²/2 is (1 + x²) ẍ = u - x ẋ² - g x. Semi-implicit Euler: the
# velocity first, then the place with the new velocity.

import matplotlib.pyplot as plt
import taichi as ti
import torch

import evenflow as ef

ef.init("cpu", "float64", threads=1)
array = ti.types.ndarray(ndim=2)


@ti.kernel
def step(x: array, u: array, y: array, dt: float):
    for b in range(x.shape[0]):
        place, speed = x[b, 0], x[b, 1]
        speed_after = speed + dt * (u[b, 0] - place * speed * speed - 9.8 * place) / (1.0 + place * place)
        y[b, 0] = place + dt * speed_after
        y[b, 1] = speed_after


bead = ef.KernelSystem(step, state_shape=(2,), control_shape=(1,), constants=(0.02,), name="bead")

# %%
# Its adjoint beside central differences of its step, entry by entry; where they departed a table would say so. A
# kernel whose adjoint is not the derivative is refused by a rollout besides.

draw = torch.Generator().manual_seed(0)
points = torch.randn(5, 2, generator=draw, dtype=torch.float64)
forces = torch.randn(5, 1, generator=draw, dtype=torch.float64)
assert ef.gradcheck(bead, points, forces)

# %%
# Without a force the energy ½ (1 + x²) ẋ² + ½ g x² stays what it is, up to the error of the scheme. That is of first
# order: half the time step, half the error. Nothing of this knows the kernel.


def energy_error(dt, horizon):
    """The largest relative error of the energy over the horizon."""
    system = ef.KernelSystem(step, (2,), (1,), constants=(dt,), checked=False)
    rest = ef.OpenLoop((1,), horizon, dtype=torch.float64)
    free = ef.Rollout(system, rest, horizon, batch=1, observation=ef.Observation.clock())
    free.forward(torch.tensor([[0.5, 0.0]], dtype=torch.float64))
    place, speed = free.states.detach().unbind(-1)
    energy = 0.5 * (1 + place**2) * speed**2 + 4.9 * place**2
    return float((energy / energy[0] - 1).abs().max())


coarse, fine = energy_error(0.02, 200), energy_error(0.01, 400)
print(f"energy errs by {coarse:.2%}, with half the time step by {fine:.2%}")
assert 1.7 < coarse / fine < 2.3

# %%
# Now it is trained to stand still at x = 1, halfway up the slope, where only a constant force holds it.


class HalfwayUp(ef.Objective):
    """(x - 1)² + 0.1 ẋ², mean over the second half of the time."""

    def running(self, states, controls, steps):
        late = (steps >= 50).unsqueeze(1)
        return late * ((states[..., 0] - 1.0).square() + 0.1 * states[..., 1].square()) / 50

    def final(self, state):
        return torch.zeros_like(state[:, 0])


task = ef.Task(
    "bead", bead, HalfwayUp(), ef.uniform_states((-0.5, -0.5), (0.5, 0.5)), 100, ef.policy_for(bead, hidden=(16,))
)
members = [ef.Member(ef.gradient_named(name).estimator, seed=0, learning_rate=0.02) for name in ("R", "M", "C")]
trainer = ef.Trainer(task, members, ef.TrainingSettings(train_samples=64, test_samples=32))
losses = [record.test_loss for record in trainer.fit(epochs=12)]
print("first and last test loss of R, M and C:", losses[0], losses[-1])
assert losses[-1][0] < 0.5 * losses[0][0]

# %%
# And where R's controller takes a few starts.

alone = ef.Trainer(task, members[:1], ef.TrainingSettings(batch_size=6, train_samples=6, test_samples=6))
alone.policy.theta.data.copy_(trainer.policy.theta[:1])
alone.rollout.forward(task.initial_states(6, seed=1, stream="test", dtype=torch.float64))
axes = plt.subplots(subplot_kw={"xlabel": "time, s", "ylabel": "place"})[1]
axes.plot(0.02 * torch.arange(101), alone.rollout.states.detach()[..., 0], color="tab:blue", alpha=0.6)
line = axes.axhline(1.0, color="black", linestyle=":")

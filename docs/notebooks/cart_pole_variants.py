"""
Two poles, three gradients
==========================

Two poles hang from one cart and are to be swung up by one force. Full backpropagation (R), the physics path alone (M)
and the combined gradient (C) train side by side in one process, from the same initial weights and on the same data.
"""

# %%
# The task, and a member for each gradient and seed. Sizes are those of a demonstration: a comparison that is to say
# anything takes ten seeds and more, by ``evenflow bench variants``.

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu", "float64", threads=1)
task = ef.build_task("cart-pole", poles=2, horizon=100)
names, seeds = ("R", "M", "C"), (0, 1)
members = [ef.Member(ef.gradient_named(name).estimator, seed=seed) for name in names for seed in seeds]
settings = ef.TrainingSettings(batch_size=8, train_samples=32, test_samples=32)
trainer = ef.Trainer(task, members, settings)

# %%
# Every epoch yields a record with the losses of all members, [members], and what was measured of their gradients.

records = list(trainer.fit(epochs=8))
losses = torch.tensor([record.test_loss for record in records]).view(len(records), len(names), len(seeds))

axes = plt.subplots(subplot_kw={"xlabel": "epoch", "ylabel": "test loss", "yscale": "log"})[1]
for index, name in enumerate(names):
    axes.plot(range(1, len(records) + 1), losses[:, index].mean(1), label=name)
    axes.fill_between(range(1, len(records) + 1), losses[:, index].amin(1), losses[:, index].amax(1), alpha=0.2)
legend = axes.legend()

# %%
# So early nothing is decided: C begins slowly, and what it gains comes later. How large the gradients are, and how
# often the two that C is made of agree in sign, is in the records.

for index, name in enumerate(names):
    record = records[-1]
    member = index * len(seeds)
    agreement = record.sign_agreement[member]
    told = "" if agreement is None else f", signs agree in {agreement:.0%} of the parameters"
    print(f"{name}: gradient norm {record.gradient_norm[member]:.3g}, |λ₀| {record.adjoint_norm[member]:.3g}{told}")

# %%
# One rollout is enough to see the three at one point: two sweeps, by R's rule and by M's, and C of both.

states = task.initial_states(8, seed=0, stream="test", dtype=trainer.policy.theta.dtype)
with ef.RolloutTape(ef.FULL, ef.PHYSICS_ONLY) as tape:
    trainer.rollout(states.repeat(len(members), 1), task.objective)
gradients = tape.gradients(trainer.rollout).parameters
combined = ef.gradient_named("C").estimator.combine(gradients)
kept = (combined != 0).double().mean(1)
print("share of parameters that C moves, member by member:", [f"{share:.2f}" for share in kept])
assert torch.all(kept > 0)
assert torch.all(kept < 1)

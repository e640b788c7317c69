"""A controller trained with randomised masses beside one without: python examples/randomised_masses.py [PICTURE.png]"""

import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu")
plain, masses = ef.build_task("cart-pole"), torch.linspace(0.04, 0.3, 14)
tasks = {"0.1 kg": plain, "0.05 to 0.25 kg": replace(plain, randomise=(("pole_mass", 0.05, 0.25),))}
medians = {}
for name, task in tasks.items():
    trainer = ef.Trainer(task, [ef.Member(seed=seed) for seed in range(5)])
    for record in trainer.fit(epochs=int(sys.argv[2]) if len(sys.argv) > 2 else 60):
        print(name, record.epoch, end="\r")
    starts = torch.cat([plain.initial_states(64, seed, "test", torch.float32) for seed in range(5)])
    test = ef.Trajectory(plain.system, trainer.policy, plain.horizon, len(starts), forward_only=True,
                         parameters=("pole_mass",))  # fmt: skip
    losses = [test.forward(starts, plain.objective, mass.expand(len(starts), 1).clone()) for mass in masses]
    medians[name] = torch.stack(losses).unflatten(1, (5, 64)).mean(2)  # [masses, seeds]
    plt.plot(masses, medians[name].median(1).values, label=f"trained at {name}")
    plt.fill_between(masses, medians[name].amin(1), medians[name].amax(1), alpha=0.2)
worst = {name: float(losses.median(1).values.max()) for name, losses in medians.items()}
print("median loss at the worst mass:", ", ".join(f"{value:.4f} trained at {name}" for name, value in worst.items()))
plt.semilogy()
plt.xlabel("mass of the pole, kg")
plt.ylabel("test loss")
plt.legend()
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "randomised.png")

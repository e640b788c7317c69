"""A controller trained with randomised masses beside one without: python examples/randomised_masses.py [PICTURE.png]"""

import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import evenflow as ef

ef.init("cpu")
plain, masses = ef.build_task("cart-pole"), torch.linspace(0.04, 0.3, 14).tolist()
scales = {"xlabel": "mass of the pole, kg", "ylabel": "test loss", "yscale": "log"}
axes = plt.subplots(layout="constrained", subplot_kw=scales)[1]
for name, ranges in {"0.1 kg": (), "0.05 to 0.25 kg": ("pole_mass=0.05:0.25",)}.items():
    trainer = ef.Trainer(replace(plain, randomise=ranges), [ef.Member(seed=seed) for seed in range(5)])
    for record in trainer.fit(epochs=int(sys.argv[2]) if len(sys.argv) > 2 else 60):
        print(name, record.epoch, end="\r")
    losses = torch.stack([trainer.test(pole_mass=mass) for mass in masses])  # [masses, seeds]
    median = losses.median(1).values
    print(f"median loss at the worst mass: {float(median.max()):.4f} trained at {name}")
    axes.plot(masses, median, label=f"trained at {name}")
    axes.fill_between(masses, losses.amin(1), losses.amax(1), alpha=0.2)
axes.legend()
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "randomised.png")

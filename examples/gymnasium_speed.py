"""Ours beside Gymnasium's cart-pole, 1,024 environments at once: python examples/gymnasium_speed.py [STEPS [ROUNDS]]

All step the same equations by turns, ours in float32, Gymnasium's own vectorised one in NumPy's float64.
"""

import sys
import time
from statistics import median

import gymnasium

import evenflow as ef

ef.init("cpu")
count, most = 1024, int(sys.argv[1]) if len(sys.argv) > 1 else 1000
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
others = {"vector_entry_point": most, "sync": max(1, most // 100)}
worlds = {mode: (gymnasium.make_vec("CartPole-v1", count, mode), steps) for mode, steps in others.items()}
worlds["Evenflow"] = ef.to_gymnasium(ef.build_task("cart-pole"), count), most
taken: dict[str, list[float]] = {name: [] for name in worlds}
for environments, _ in worlds.values():
    environments.reset(seed=0)
for _ in range(rounds):
    for name, (environments, steps) in worlds.items():
        actions = environments.action_space.sample()
        start = time.perf_counter()
        for _ in range(steps):
            environments.step(actions)
        taken[name].append((time.perf_counter() - start) / steps)
for name, seconds in taken.items():
    print(f"{name}: {1e6 * min(seconds):.1f} µs a step, median {1e6 * median(seconds):.1f}, "
          f"{count / min(seconds):,.0f} samples a second")  # fmt: skip
ours = taken["Evenflow"]
for name in others:
    ratios = [theirs / own for theirs, own in zip(taken[name], ours, strict=True)]
    print(f"Evenflow {min(taken[name]) / min(ours):.1f} times as many as {name}, median of rounds {median(ratios):.1f}")

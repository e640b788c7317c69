"""Ours beside Gymnasium's own cart-pole, 1,024 environments at once: python examples/gymnasium_speed.py [N]

Both step the same equations, ours in float32, Gymnasium's vectorised one in NumPy's float64.
"""

import sys
import time

import gymnasium

import evenflow as ef

ef.init("cpu")
count, most = 1024, int(sys.argv[1]) if len(sys.argv) > 1 else 1000


def samples_per_second(environments: gymnasium.vector.VectorEnv, steps: int) -> float:
    """Of the fastest of five runs."""
    environments.reset(seed=0)
    actions = environments.action_space.sample()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(steps):
            environments.step(actions)
        seconds.append(time.perf_counter() - start)
    return count * steps / min(seconds)


ours = samples_per_second(ef.to_gymnasium(ef.build_task("cart-pole"), count), most)
print(f"Evenflow's cart-pole, one launch a step: {ours:,.0f} samples a second")
for mode, steps in (("sync", max(1, most // 100)), ("vector_entry_point", most)):
    theirs = samples_per_second(gymnasium.make_vec("CartPole-v1", count, mode), steps)
    print(f"Gymnasium's, {mode}: {theirs:,.0f}, Evenflow {ours / theirs:.1f} times as many")

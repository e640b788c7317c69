"""How a trained hopper goes, from 64 test states: python examples/hopper_gait.py RUN [GRADIENT [SEED]]"""

import sys
from typing import Any

import torch

import evenflow as ef
from training.tasks.hopper import gait

ef.init("cpu", threads=1)
run, *rest = sys.argv[1:]
gradient, seed = (*rest, None, None)[:2]
task: Any = ef.load_task(run)
if task.name != "hopper":
    raise SystemExit(f"Expected a run of hopper, got one of {task.name}.")
policy = ef.load_controller(run, gradient, None if seed is None else int(seed))
rollout: Any = ef.Rollout(task.system, policy, task.horizon, 64, **task.parts)
loss = rollout.forward(task.initial_states(64, 0, "test", torch.float32), task.objective)
ends = rollout.parts.ends.at
hopper, seconds = task.system.system, task.system.step_time
found = gait(rollout.states.detach(), ends, seconds, hopper.softness)
print(f"loss {loss.mean():.3f}, {(ends == task.horizon).float().mean():.0%} do not fall, in flight for "
      f"{found.flight.mean():.0%} of the time, {found.touchdowns.mean():.1f} touchdowns, {found.speed.mean():.2f} m/s "
      f"where {task.objective.speed} are wanted")  # fmt: skip

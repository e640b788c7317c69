"""Stable-Baselines3's PPO beside a training by gradients, after equally many steps of physics of one cart-pole:
python examples/ppo_cart_pole.py [STEPS]
"""

import sys

from gymnasium.wrappers import RescaleAction
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import evenflow as ef

ef.init("cpu", threads=1)
task = ef.build_task("cart-pole")
trainer = ef.Trainer(task, [ef.Member(ef.gradient_named(name).estimator, seed=0) for name in ("R", "C")])
an_epoch = trainer.updates_per_epoch * trainer.settings.batch_size * task.horizon
epochs = max(1, (int(sys.argv[1]) if len(sys.argv) > 1 else 204_800) // an_epoch)
*_, last = trainer.fit(epochs)

environments = make_vec_env(lambda: RescaleAction(ef.to_gymnasium(task), -1.0, 1.0), n_envs=8, seed=0)
policy = {"net_arch": [100, 100], "log_std_init": -0.5}
ppo = PPO("MlpPolicy", environments, n_steps=task.horizon, batch_size=200, gamma=1.0, seed=0, policy_kwargs=policy)
ppo.learn(epochs * an_epoch)
returned, _ = evaluate_policy(ppo, environments, n_eval_episodes=64, warn=False)
print(f"test loss after {epochs * an_epoch} steps: {last.test_loss[0]:.4f} by R, {last.test_loss[1]:.4f} by C, "
      f"{-float(returned):.4f} by PPO")  # fmt: skip

"""Tasks as Gymnasium's environments; needs Gymnasium."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from engine import SettingError, ShapeError, current
from training.episodes import Episodes
from training.task import Task


def _spaces(episodes: Episodes) -> tuple[spaces.Box, spaces.Box]:
    kind = np.float32 if current().precision == "float32" else np.float64
    low, high = episodes.bounds
    seen = spaces.Box(-np.inf, np.inf, episodes.observed_shape, kind)
    return seen, spaces.Box(low, high, episodes.task.system.control_shape, kind)


class TaskVectorEnv(VectorEnv):
    """N environments of one task that step together, in one launch.

    An episode that is over starts anew at the next step, whose action it does not see (`AutoresetMode.NEXT_STEP`).
    Rewards are minus costs; leaving the horizon is truncation, the task's end is termination.

    Args:
        task: with `control_bounds`; num_envs: N.
    """

    def __init__(self, task: Task, num_envs: int):
        self.episodes = Episodes(task, num_envs)
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.single_observation_space, self.single_action_space = _spaces(self.episodes)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over, self._some_over = np.zeros(num_envs, dtype=bool), False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start every environment; `seed` settles all that follows, of a list the first counts.

        Environments that never had one have one that nobody knows.
        """
        if isinstance(seed, list):
            if len(seed) != self.num_envs or (seed[0] is None and any(one is not None for one in seed)):
                raise SettingError(
                    f"Expected a seed, or a list of {self.num_envs} whose first counts for all, got {seed!r}."
                )
            seed = seed[0]
        super().reset(seed=seed)
        if seed is not None:
            self.episodes.seed(seed)
        self._some_over = False
        return self.episodes.start(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """(observations, rewards, terminations, truncations, infos) of all environments."""
        observations, rewards, ended, out_of_time = self.episodes.step(actions)
        if self._some_over:
            observations = self.episodes.start(self._over)
            rewards[self._over], ended[self._over], out_of_time[self._over] = 0.0, False, False
        self._some_over = self.episodes.some_over
        if self._some_over:
            self._over = ended | out_of_time
            self._some_over = bool(self._over.any())
        return observations, rewards, ended, out_of_time, {}


class TaskEnv(gymnasium.Env):
    """One environment of a task, as `TaskVectorEnv`; it is started by `reset`.

    Args:
        task: with `control_bounds`.
    """

    def __init__(self, task: Task):
        self.episodes = Episodes(task, 1)
        self.metadata = {"render_modes": []}
        self.observation_space, self.action_space = _spaces(self.episodes)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.episodes.seed(seed)
        return self.episodes.start()[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated, info)."""
        given, shape = np.asarray(action), self.episodes.task.system.control_shape
        if given.shape != shape and not (given.shape == () and math.prod(shape) == 1):
            raise ShapeError(f"Expected an action of shape {shape}, got {given.shape}.")
        observations, rewards, ended, out_of_time = self.episodes.step(given[None])
        return observations[0], float(rewards[0]), bool(ended[0]), bool(out_of_time[0]), {}

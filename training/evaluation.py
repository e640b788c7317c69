"""Tests of an ensemble on starts of their own, which no training sees."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from engine import Trajectory
from policies import Policy
from training.ranks import ALONE, Ranks
from training.starts import starts_of
from training.task import Task


class Evaluation:
    """The mean loss of every member on `count` starts of a stream, each member's from its seed.

    Args:
        draw: numbers the noise that the task has, if any, among that of trainings and of other tests.
        given: physical parameters by name that have other values than usual, for all samples; what the task randomises
            besides has its usual values.
        ranks: who shares the starts.

    Attributes:
        trajectory: the rollouts.
    """

    def __init__(
        self,
        task: Task,
        policy: Policy,
        seeds: list[int],
        stream: str,
        count: int,
        draw: int,
        given: Mapping[str, float] | None = None,
        ranks: Ranks = ALONE,
    ):
        if given:
            ranges = {entry[0]: entry for entry in task.randomise} | {
                name: (name, it, it) for name, it in given.items()
            }
            task = replace(task, randomise=tuple(ranges.values()))
        self._task, self._seeds, self._draw, self._count, self._ranks = task, seeds, draw, count, ranks
        part = ranks.part(count, f"{stream} states")
        self._first = part.start
        states, parameters = starts_of(task, seeds, stream, count)
        self._states = states[:, part].flatten(0, 1).contiguous()
        self._parameters = None if parameters is None else parameters[:, part].flatten(0, 1).contiguous()
        for column, (name, *_) in enumerate(task.randomise):
            if given and name in given and self._parameters is not None:
                self._parameters[:, column] = torch.tensor(given[name], dtype=self._parameters.dtype)  # or infinite
        setting = task.system, policy, task.horizon, len(self._states)
        self.trajectory = Trajectory(*setting, forward_only=True, **task.parts)

    def losses(self) -> torch.Tensor:
        """[P]."""
        if self._task.noise is not None:
            self.trajectory.seed_noise(self._seeds, self._draw, self._first)
        losses = self.trajectory.forward(self._states, self._task.objective, self._parameters)
        assert losses is not None
        return self._ranks.mean(self._count, losses.view(len(self._seeds), -1).mean(1))[0]

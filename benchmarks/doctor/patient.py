"""What is examined: a task with the weights of a trained controller, or with those that training would start from."""

import math
from dataclasses import dataclass

import torch

from engine import Rollout, current
from engine.rules import AdjointRule
from policies import Policy
from training.objectives import Objective
from training.starts import built
from training.task import Task, generator
from training.viewing.watching import Watched


@dataclass(frozen=True)
class Patient:
    """A task, a policy of one member, and starts.

    Attributes:
        name: for people.
        task, policy: in the precision that runs.
        initial: test starts [B, *state_shape].
        parameters: what the task randomises, at its usual values [B, q], if anything.
    """

    name: str
    task: Task
    policy: Policy
    initial: torch.Tensor
    parameters: torch.Tensor | None

    @classmethod
    def of(cls, watched: Watched, samples: int) -> "Patient":
        """The last checkpoint of a controller, or the weights that seed 0 starts from where it is untrained."""
        runtime, task = current(), watched.task
        policy = built(task.policy, 1)
        last = max(len(watched.checkpoints) - 1, 0)
        if watched.checkpoints:
            watched.fill(policy, last)
            why = watched.divergence(last)
            late = "" if why is None else f", diverged in update {why.update} of epoch {why.epoch}"
            name = f"{watched.name}, epoch {watched.epoch(last)}{late}"
        else:
            policy.initialise(0, generator(0, "policy"))
            name = "initial weights"
        states, parameters = task.starts(samples, 0, "test", runtime.dtype)
        moved = None if parameters is None else parameters.to(runtime.device)
        return cls(name, task, policy, states.to(runtime.device), moved)

    @property
    def samples(self) -> int:
        """B."""
        return len(self.initial)

    def rollout(self, horizon: int | None = None) -> Rollout:
        """A rollout of all starts, over the task's horizon or another."""
        task = self.task
        return Rollout(task.system, self.policy, horizon or task.horizon, self.samples, **task.parts)

    def run(self, rollout: Rollout, objective: Objective | None = None) -> torch.Tensor:
        """Forward; the losses [B] of the task's objective or another."""
        if self.task.noise is not None:
            rollout.seed_noise([0], 0)
        losses = rollout.forward(self.initial, objective or self.task.objective, self.parameters)
        assert losses is not None
        return losses

    def gradients(self, rules: dict[str, AdjointRule]) -> dict[str, torch.Tensor]:
        """The gradient [n] of each rule, by its name."""
        rollout = self.rollout()
        self.run(rollout)
        found = rollout.backward(list(rules.values()), self.task.objective, physical=False).parameters
        return {name: found[rule][0] for name, rule in rules.items()}


class Probe(Objective):
    """⟨v, x_T⟩ with a random direction v of length 1 for each sample: its adjoints grow by the paths alone."""

    def __init__(self, shape: tuple[int, ...], samples: int):
        draw = torch.randn(samples, math.prod(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self._direction = draw / draw.norm(dim=1, keepdim=True)

    def final(self, state):
        return (state.flatten(1) * self._direction.to(state)).sum(1)

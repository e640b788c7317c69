"""One sample's rollout and its adjoints, as arrays to draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine import Rollout, System, current
from engine.systems import Held
from training.gradients import Gradient
from training.objectives import Objective
from training.starts import built
from training.task import Task
from training.viewing.watching import Watched


@dataclass(frozen=True)
class Episode:
    """A rollout of one sample.

    Attributes:
        states: [T+1, *state_shape]; controls: [T, *control_shape]; float64.
        losses: [T+1]; what the loss would be, had the rollout ended at this step: the costs before it and the final
            cost at it. The last is the loss.
        adjoints: for each variant λ [T+1, *state_shape], if asked for.
    """

    states: np.ndarray
    controls: np.ndarray
    losses: np.ndarray
    adjoints: dict[str, np.ndarray]


class Simulation:
    """Rolls out one controller from one state at a time.

    Args:
        of: the controller.
        variants: gradients whose adjoints are wanted. A variant of several sweeps combines their adjoints as it
            combines parameter gradients in training: C shows M's λ where its sign agrees with R's, else 0.
    """

    def __init__(self, of: Watched, variants: Sequence[Gradient] = ()):
        self.of, self.task, self._variants = of, of.task, tuple(variants)
        self._policy = built(self.task.policy, 1)
        self._rollout = Rollout(self.task.system, self._policy, self.task.horizon, 1, **self.task.parts)
        self._rollout.seed_noise(0)

    def initial(self, seed: int) -> np.ndarray:
        """The initial state [*state_shape] of a seed."""
        return _array(self.task.initial_states(1, seed, "test", current().dtype)[0])

    def run(self, initial: np.ndarray, checkpoint: int) -> Episode:
        """Roll out from `initial` [*state_shape] with the weights of a checkpoint."""
        self.of.fill(self._policy, checkpoint)
        start = torch.as_tensor(initial, dtype=current().dtype).unsqueeze(0).to(current().device).contiguous()
        usual = self.task.usual_parameters(1, current().dtype)
        self._rollout.forward(start, parameters=None if usual is None else usual.to(current().device))
        states, controls = self._rollout.states.detach(), self._rollout.controls.detach()
        return Episode(_array(states[:, 0]), _array(controls[:, 0]), self._losses(states, controls), self._adjoints())

    @property
    def can_aim(self) -> bool:
        """Whether the task's goal can be moved."""
        return self._aimed_at((0.0, 0.0)) is not None

    def aim(self, place: tuple[float, float]) -> None:
        """Move the task's goal, where it can be moved."""
        objective = self._aimed_at(place)
        if objective is not None:
            self.task = replace(self.task, objective=objective)

    def _aimed_at(self, place: tuple[float, float]) -> Objective | None:
        objective = self.task.objective
        return objective.aimed_at(place) if isinstance(objective, Objective) else None

    def _losses(self, states: torch.Tensor, controls: torch.Tensor) -> np.ndarray:
        objective, horizon = self.task.objective, self.task.horizon
        with torch.no_grad():
            running = objective.running(states[:-1], controls, torch.arange(horizon, device=states.device))
            final = objective.final(states[:, 0])
        losses = np.zeros(horizon + 1)
        if running is not None:
            steps = torch.arange(horizon, device=states.device)
            losses[1:] = np.cumsum(_array(self._rollout.parts.masked(running, steps)[:, 0]))
        return losses if final is None else losses + _array(final)

    def _adjoints(self) -> dict[str, np.ndarray]:
        rules = list(dict.fromkeys(rule for variant in self._variants for rule in variant.estimator.rules))
        if not rules:
            return {}
        found: dict[Any, torch.Tensor] = {}

        def note(rule, part, adjoints, cotangents) -> None:
            swept = found.setdefault(rule, torch.zeros_like(self._rollout.states[:, 0], requires_grad=False))
            swept[part.start : part.stop + 1] = adjoints[:, 0]

        self._rollout.backward(rules, self.task.objective, inspect=note, physical=False)
        shown = {}
        for variant in self._variants:  # estimators combine rows of numbers, whatever the shape of a state
            rows = {rule: found[rule].flatten(1) for rule in variant.estimator.rules}
            shape = found[variant.estimator.rules[0]].shape
            shown[variant.text] = _array(variant.estimator.combine(rows).view(shape))
        return shown


def step_seconds(system: System) -> float | None:
    """How long a step is, of systems whose time is in seconds: those that have `step_seconds`; else None."""
    if isinstance(system, Held):
        inner = step_seconds(system.system)
        return None if inner is None else inner * system.steps
    return getattr(system, "step_seconds", None)


def goal_of(task: Task) -> np.ndarray | None:
    """Where the task's objective wants the system to be, as its drawing takes it; None if that cannot be drawn."""
    goal = task.objective.goal if isinstance(task.objective, Objective) else None
    if goal is None:
        return None
    return _array(goal) if isinstance(goal, torch.Tensor) else np.asarray(goal, dtype=float)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().double().numpy())

"""A task one step at a time, for who acts from outside: many episodes at once, each started anew when it is over."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from engine import SettingError, ShapeError, current
from engine.checks import whole
from engine.contracts import check_tensor, described
from engine.ends import check_goes_on, is_over
from engine.lanes import prepare_in_lanes
from engine.loops import torch_threads
from engine.noise import CONTROL, STATE, NoiseSource
from engine.parameters import SampleParameters
from engine.trajectory import Cost
from engine.vector_system import VectorSystem
from training.starts import check_repeatable
from training.task import MOST_SEEDS, Task

# Initial states that are drawn at once, since a few at a time cost as much.
_POOL = 1024
# Episodes from which torch's part of a step is worth sharing among threads.
_SHARED = 16384


class Transition(NamedTuple):
    """Observations [N, *shape] and rewards [N] of a step, and which episodes have ended or run out of steps [N]."""

    observations: np.ndarray
    rewards: np.ndarray
    ended: np.ndarray
    out_of_time: np.ndarray


class Episodes:
    """N episodes of a task; a step is one launch of its system for all of them.

    The reward of a step is -ℓ_t(x_t, u_t), and at the end of an episode -ℓ_T(x_τ) more, so that the sum of an episode's
    rewards is minus the loss that a controller of the same controls has. Controls are limited to the task's bounds.

    Args:
        task: with `control_bounds`.
        count: N.
        seed: of initial states, parameters and noise; None for one that nobody knows.

    Attributes:
        some_over: whether an episode was over after the last step.
    """

    def __init__(self, task: Task, count: int, seed: int | None = None):
        if not isinstance(task, Task):
            raise SettingError(f"Expected a task such as build_task('cart-pole'), got {described(task)}.")
        if task.control_bounds is None:
            raise SettingError(
                f"Expected a task whose controls are bounded, got {task.name}; give it some: "
                "dataclasses.replace(task, control_bounds=(-1.0, 1.0))."
            )
        check_repeatable(task, 0, "environments")
        self.task, self.count = task, count
        system, options = task.system, {"dtype": current().dtype, "device": current().device}
        self.bounds = task.control_bounds
        names = tuple(name for name, *_ in task.randomise)
        self._parameters = SampleParameters(system, names, count) if names else None
        given = None if self._parameters is None else self._parameters.of_system
        self.states = torch.zeros(count, *system.state_shape, **options)
        self.controls = torch.zeros(count, *system.control_shape, **options)
        self._next = torch.zeros_like(self.states)
        arrays = self.states, self.controls, self._next
        in_lanes = prepare_in_lanes(system, *arrays) if given is None and isinstance(system, VectorSystem) else None
        self._advance = in_lanes or system.prepare_step(*arrays, **({} if given is None else {"parameters": given}))
        scales = ((STATE, task.noise.state), (CONTROL, task.noise.control)) if task.noise is not None else ()
        shapes = {STATE: system.state_shape, CONTROL: system.control_shape}
        self._noise = {kind: NoiseSource(kind, scale, 1, count, 1, shapes[kind]) for kind, scale in scales if scale > 0}
        # On the CPU controls and states are given and taken in the tensors' own memory, past torch.
        given, here = self.controls.cpu(), self.controls.device.type == "cpu"
        self._limited, states = given.numpy(), self.states.cpu().numpy()
        # Arrays of one shape and kind are compared in half the time that an array and a number are.
        self._lowest, self._highest = (np.full_like(self._limited, bound) for bound in task.control_bounds)
        self._enter = (lambda: None) if here else partial(self.controls.copy_, given)
        self._leave = (
            partial(np.copyto, states, self._next.cpu().numpy()) if here else partial(self.states.copy_, self._next)
        )
        self._shown = (lambda: states) if here else partial(_array, self.states)
        self._clock, self._began, self._left = 0, np.zeros(count, dtype=np.int64), task.horizon
        self.some_over, self._costs_run = False, True
        self._started = False
        self.seed(torch.Generator().seed() % MOST_SEEDS if seed is None else seed)

    @property
    def observed_shape(self) -> tuple[int, ...]:
        observation = self.task.observation
        return self.task.system.state_shape if observation is None else observation.shape

    @property
    def steps(self) -> np.ndarray:
        """Taken by each episode [N]."""
        return self._clock - self._began

    def seed(self, seed: int) -> None:
        """Draw what follows from this seed."""
        seed = whole("a seed of at least 0", seed, least=0, most=2**63 - 1)
        self._random, self._pool, self._taken = torch.Generator().manual_seed(seed), None, 0
        self._elapsed = 0
        for source in self._noise.values():
            source.seed(seed % 2**32, 0)

    def start(self, which: np.ndarray | None = None) -> np.ndarray:
        """Start these episodes [N] anew, or all; the observations [N, *shape] of all."""
        places = np.arange(self.count) if which is None else np.flatnonzero(which)
        if len(places):
            with self._torch():
                states, rows = self._drawn(len(places))
                chosen = torch.from_numpy(places).to(self.states.device)
                if len(places) == self.count:
                    self.states.copy_(states)
                else:
                    self.states.index_copy_(0, chosen, states.to(self.states))
                if self.task.end is not None:
                    check_goes_on(self.task.end, self.states[chosen])
                if self._parameters is not None and rows is not None:
                    values = self._parameters.rows.clone()
                    values[chosen] = rows.to(values)
                    self._parameters.set(values)
            self._began[places] = self._clock
            self._left = self.task.horizon - self._clock + int(self._began.min())
        self._started = True
        return self._observed()

    def step(self, controls: np.ndarray) -> Transition:
        """Act with `controls` [N, *control_shape], or [N] where a control is one number, for one step.

        Raises:
            ShapeError: controls of another shape or that are no real numbers, or such costs and ends of the task.
            SettingError: before any episode has started.
        """
        if not self._started:
            raise SettingError("Expected episodes that have started, got a step before any has; call reset() first.")
        if getattr(controls, "shape", None) != self._limited.shape:
            controls = self._shaped(controls)
        try:
            np.maximum(controls, self._lowest, out=self._limited)
        except TypeError:
            raise ShapeError(f"Expected controls as real numbers, got {described(controls)}.") from None
        np.minimum(self._limited, self._highest, out=self._limited)
        if np.isnan(self._limited).any():
            raise ShapeError("Expected controls as real numbers, got NaN; a policy that gives it has diverged.")
        self._enter()
        self._disturb(CONTROL, self.controls)
        self._advance()
        self._disturb(STATE, self._next)
        rewards = self._running() if self._costs_run else np.zeros(self.count)
        self._leave()
        self._clock += 1
        self._left -= 1
        ended, out_of_time = np.zeros((2, self.count), dtype=bool)
        if self.task.end is not None:
            with self._torch():
                ended = _array(is_over(self.task.end, self.states))
        if self._left <= 0:
            out_of_time = (self.steps >= self.task.horizon) & ~ended
        self.some_over = self._left <= 0 or (self.task.end is not None and bool(ended.any()))
        if self.some_over:
            self._add_final(rewards, ended | out_of_time)
        return Transition(self._observed(), rewards, ended, out_of_time)

    def _shaped(self, controls: Any) -> np.ndarray:
        """[N, *control_shape] of what may be a list, or lack the axis of a single number."""
        wanted, given = self._limited.shape, np.asarray(controls)
        if given.shape == wanted or (given.shape == (self.count,) and self._limited.size == self.count):
            return given.reshape(wanted)
        raise ShapeError(f"Expected controls of shape {wanted}, got {given.shape}; give one for each environment.")

    def _running(self) -> np.ndarray:
        """Minus the running costs; an objective that has none in one step has none in any."""
        with self._torch():
            # Every episode has a time of its own: episodes stand where a rollout has its steps. Of those that are over
            # nothing is asked at a time that is none.
            times = self._times().clamp(max=self.task.horizon - 1)
            costs = self._objective(1).running(self.states.unsqueeze(1), self.controls.unsqueeze(1), times)
            self._costs_run = costs is not None
            if costs is None:
                return np.zeros(self.count)
            what = f"running costs for {self.count} steps and 1 samples"
            check_tensor(what, costs, (self.count, 1), self.states)
            return -_array(costs[:, 0]).astype(np.float64)

    def _add_final(self, rewards: np.ndarray, over: np.ndarray) -> None:
        with self._torch():
            final = self._objective().final(self.states)
            if final is not None:
                check_tensor("a final cost for each sample", final, (self.count,), self.states)
                rewards -= np.where(over, _array(final), 0.0)

    @contextmanager
    def _torch(self) -> Iterator[None]:
        with torch.inference_mode(), torch_threads(self.count >= _SHARED):
            yield

    def _times(self) -> torch.Tensor:
        return torch.from_numpy(self.steps).to(self.states.device)

    def _disturb(self, kind: int, values: torch.Tensor) -> None:
        if kind in self._noise:
            with self._torch():
                self._noise[kind].fill(self._elapsed)
                self._elapsed += kind == STATE or STATE not in self._noise
                values += self._noise[kind].values[0]

    def _objective(self, *trailing: int) -> Cost:
        """The task's for the parameters of each episode [N, *trailing]."""
        given = getattr(self.task.objective, "given", None)
        if self._parameters is None or given is None:
            return self.task.objective
        return given(self._parameters.named(self._parameters.rows.view(self.count, *trailing, -1)))

    def _observed(self) -> np.ndarray:
        if self.task.observation is None:
            return self._shown().copy()
        with self._torch():
            named = {}
            if self._parameters is not None:
                named = self._parameters.named(self._parameters.rows.unsqueeze(1))
            return _array(self.task.observation(self.states.unsqueeze(1), self._times(), named)[:, 0]).copy()

    def _drawn(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next initial states [count, *state_shape], with what is randomised [count, q]."""
        if self._pool is None or self._taken + count > len(self._pool[0]):
            size = max(_POOL if self.count > 1 else 32, count)
            states, dtype = self.task.checked(self.task.sample(size, self._random), size).detach(), current().dtype
            self._pool, self._taken = (states, self.task.drawn_parameters(size, self._random, dtype)), 0
        places = slice(self._taken, self._taken + count)
        self._taken += count
        states, rows = self._pool
        return states[places], None if rows is None else rows[places]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()

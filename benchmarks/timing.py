"""How updates are timed: in turns, so that every side sees the same machine, and by phase; and on what machine."""

import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch

from engine import Rollout
from engine.runtime import synchronise
from training import Trainer

PHASES = ("forward", "K", "sweep", "pull-back", "optimiser")
_PACKAGES = {"taichi": "taichi", "torch": "torch", "jax": "jax", "jax-md": "jax_md", "warp-lang": "warp"}
_WARM_UP, _IN_A_ROW, _LEAST_ROUNDS = 3, 4, 3
_LONG = 30.0  # seconds


def now() -> float:
    """Seconds on a clock, read once the device has done what it was given."""
    synchronise()
    return time.perf_counter()


def in_turns(
    updates: dict[Any, Callable[[], Any]], rounds: int, in_a_row: int = _IN_A_ROW, seconds: float = math.inf
) -> dict[Any, list[float]]:
    """ms of every update in every round, the mean of a few in a row as in a training; the first rounds warm up.

    After so many seconds no further round begins, once there are three that count.
    """
    times: dict[Any, list[float]] = {key: [] for key in updates}
    warm_up, began = min(_WARM_UP if math.isinf(seconds) else 1, rounds), time.perf_counter()
    for number in range(rounds + warm_up):
        if number >= warm_up + _LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for key, update in updates.items():
            started = now()
            for _ in range(in_a_row):
                update()
            if number >= warm_up:
                times[key].append((now() - started) / in_a_row * 1e3)
    return times


def seconds_of(call: Callable[[], Any]) -> float:
    """What one call takes once its kernels are compiled: the mean of a few, fewer where they are long.

    A first one that takes so long that compiling is little of it is the only one.
    """
    times: list[float] = []
    while len(times) <= _IN_A_ROW and sum(times) < _LONG:
        started = now()
        call()
        times.append(now() - started)
    return statistics.mean(times[1:] or times)


def phases(trainer: Trainer, batch: tuple[torch.Tensor, torch.Tensor | None], rounds: int) -> dict[str, float]:
    """Median ms of each phase of an update with a mini-batch; on a device the waits between them take some."""
    trace = type(trainer.rollout.trace)
    parts = {
        "forward": (Rollout, "forward"),
        "K": (trace, "linearise"),
        "pull-back": (trace, "pull_back_parameters"),
        "gradient": (Trainer, "gradient"),
    }
    samples: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for _ in range(rounds):
        spent = dict.fromkeys(parts, 0.0)
        with ExitStack() as stack:
            for name, (owner, method) in parts.items():
                stack.enter_context(mock.patch.object(owner, method, _timed(getattr(owner, method), spent, name)))
            started = now()
            trainer.update(*batch)
            whole = (now() - started) * 1e3
        gradient = spent.pop("gradient")
        spent["sweep"], spent["optimiser"] = gradient - sum(spent.values()), whole - gradient
        for phase in PHASES:
            samples[phase].append(spent[phase])
    return {phase: statistics.median(values) for phase, values in samples.items()}


def _timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """`function`, whose ms are added to those spent under a name."""

    def run(*args: Any, **kwargs: Any) -> Any:
        started = now()
        result = function(*args, **kwargs)
        spent[name] += (now() - started) * 1e3
        return result

    return run


def this_machine() -> dict[str, Any]:
    """The cores, platform and versions that a measurement is taken with."""
    packages = {name: version(name) for name, module in _PACKAGES.items() if importlib.util.find_spec(module)}
    return {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(), **packages}

"""How updates are timed: in turns, so that every side sees the same machine, and by phase; and on what machine."""

import cProfile
import importlib.util
import inspect
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from engine import Rollout
from training import Trainer

PHASES = ("forward", "K", "sweep", "pull-back", "optimiser")
_WARM_UP, _IN_A_ROW = 3, 4


def in_turns(updates: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """ms of every update in every round, the mean of a few in a row as in a training; the first rounds warm up."""
    times: dict[Any, list[float]] = {key: [] for key in updates}
    warm_up = min(_WARM_UP, rounds)
    for number in range(rounds + warm_up):
        for key, update in updates.items():
            started = time.perf_counter()
            for _ in range(_IN_A_ROW):
                update()
            if number >= warm_up:
                times[key].append((time.perf_counter() - started) / _IN_A_ROW * 1e3)
    return times


def phases(trainer: Trainer, batch: tuple[torch.Tensor, torch.Tensor | None], rounds: int) -> dict[str, float]:
    """Median ms of each phase of an update with a mini-batch, by Python's profiler, which itself takes some."""
    trace = type(trainer.rollout.trace)
    parts = {"forward": Rollout.forward, "K": trace.linearise, "pull-back": trace.pull_back_parameters}
    samples: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for _ in range(rounds):
        profile = cProfile.Profile(builtins=False)
        profile.runcall(trainer.update, *batch)
        of_code = {entry.code: entry.totaltime * 1e3 for entry in profile.getstats()}
        spent = {name: of_code.get(inspect.unwrap(part).__code__, 0.0) for name, part in parts.items()}
        gradient, update = (of_code[inspect.unwrap(part).__code__] for part in (Trainer.gradient, Trainer.update))
        spent["sweep"] = gradient - sum(spent.values())
        spent["optimiser"] = update - gradient
        for phase in PHASES:
            samples[phase].append(spent[phase])
    return {phase: statistics.median(values) for phase, values in samples.items()}


def this_machine() -> dict[str, Any]:
    """The cores, platform and versions that a measurement is taken with."""
    packages = {name: version(name) for name in ("taichi", "torch", "jax") if importlib.util.find_spec(name)}
    return {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(), **packages}

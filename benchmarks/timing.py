"""How updates are timed: in turns, so that every side sees the same machine, and phase by phase."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from training import Trainer

PHASES = ("forward", "K", "sweep", "pull-back", "optimiser")
_WARM_UP, _IN_A_ROW = 3, 4


def in_turns(updates: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """ms of every update in every round, the mean of a few in a row as in a training; the first rounds warm up."""
    times: dict[Any, list[float]] = {key: [] for key in updates}
    for number in range(rounds + _WARM_UP):
        for key, update in updates.items():
            started = time.perf_counter()
            for _ in range(_IN_A_ROW):
                update()
            if number >= _WARM_UP:
                times[key].append((time.perf_counter() - started) / _IN_A_ROW * 1e3)
    return times


def phases(trainer: Trainer, initial: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median ms of each phase of an update."""
    rollout, spent = trainer.rollout, defaultdict(float)
    samples: dict[str, list[float]] = {phase: [] for phase in PHASES}
    with (
        _timed(rollout, "forward", spent, "forward"),
        _timed(rollout.record, "linearise", spent, "K"),
        _timed(rollout.record, "pull_back_parameters", spent, "pull-back"),
        _timed(trainer, "gradient", spent, "gradient"),
    ):
        for _ in range(rounds):
            spent.clear()
            started = time.perf_counter()
            trainer.update(initial)
            total = (time.perf_counter() - started) * 1e3
            spent["sweep"] = spent["gradient"] - spent["forward"] - spent["K"] - spent["pull-back"]
            spent["optimiser"] = total - spent["gradient"]
            for phase in PHASES:
                samples[phase].append(spent[phase])
    return {phase: statistics.median(values) for phase, values in samples.items()}


@contextmanager
def _timed(owner: Any, name: str, spent: dict[str, float], phase: str) -> Iterator[None]:
    """Add the ms that `owner.name(...)` takes to `spent[phase]`."""
    method = getattr(owner, name)

    def wrapper(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **options)
        finally:
            spent[phase] += (time.perf_counter() - started) * 1e3

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        delattr(owner, name)

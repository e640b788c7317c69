"""What one training of a study costs: time of an update, phase by phase, and planned memory."""

import statistics
from dataclasses import replace
from typing import Any

from benchmarks.study import Study
from benchmarks.timing import in_turns, phases


def measure_costs(study: Study, rounds: int = 8) -> dict[str, dict[str, Any]]:
    """For each difficulty and gradient {"ms", "phases", "bytes"} of one training alone.

    Gradients take turns. The threads are the runtime's; other work on the machine shows in these figures.
    """
    costs: dict[str, dict[str, Any]] = {}
    for difficulty in study.difficulties:
        trainers = {}
        for letter in study.gradients:
            alone = (letter, study.clippings[0], study.learning_rates[0])
            experiment = replace(study.experiment(difficulty, range(1)), variants=(alone,), milestones=None)
            trainer = experiment.trainer()
            trainers[letter] = (trainer, next(trainer.batches()))
        updates = {
            letter: lambda trainer=trainer, initial=initial: trainer.update(initial)
            for letter, (trainer, initial) in trainers.items()
        }
        times = in_turns(updates, rounds)
        costs[str(difficulty)] = {
            letter: {
                "ms": statistics.median(times[letter]),
                "phases": phases(trainer, initial, rounds),
                "bytes": trainer.rollout.plan.predicted,
            }
            for letter, (trainer, initial) in trainers.items()
        }
    return costs

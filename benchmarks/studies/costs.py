"""What one training of a study costs: time of an update, phase by phase, and planned memory."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.studies.study import Study
from benchmarks.timing import in_turns, now, phases
from training.errors import RunError
from training.files import reason
from training.metrics import from_json, is_number
from training.variant import Variant

# Seconds of an update from which few are timed, and of turns at one difficulty, after which no further one begins; how
# many updates are then timed phase by phase.
_SLOW, _SECONDS, _FEW = 0.25, 60.0, 3


def measure_costs(study: Study, rounds: int = 8) -> dict[str, dict[str, Any]]:
    """For each difficulty and gradient {"ms", "phases", "bytes"} of one training alone.

    Gradients take turns, fewer where updates are slow. The threads are the runtime's; other work on the machine shows
    in these figures.
    """
    costs: dict[str, dict[str, Any]] = {}
    for difficulty in study.difficulties:
        trainers = {}
        for letter in study.gradients:
            alone = Variant(letter, study.clippings[0], study.learning_rates[0])
            experiment = replace(study.experiment(difficulty, (0,)), variants=(alone,), milestones=None)
            trainer = experiment.trainer()
            trainers[letter] = (trainer, next(trainer.batches()))
        updates = {
            letter: lambda trainer=trainer, batch=batch: trainer.update(*batch)
            for letter, (trainer, batch) in trainers.items()
        }
        for update in updates.values():  # what is compiled is not timed
            update()
        began = now()
        for update in updates.values():
            update()
        slow = (now() - began) / len(updates) >= _SLOW
        times = in_turns(updates, rounds, in_a_row=1, seconds=_SECONDS) if slow else in_turns(updates, rounds)
        costs[str(difficulty)] = {
            letter: {
                "ms": statistics.median(times[letter]),
                "phases": phases(trainer, batch, min(rounds, _FEW) if slow else rounds),
                "bytes": trainer.planned_bytes,
            }
            for letter, (trainer, batch) in trainers.items()
        }
    return costs


def load_costs(out: Path) -> dict[str, dict[str, Any]]:
    """The costs of the study in a directory as `measure_costs` found them; none if they were not measured."""
    file = out / "costs.json"
    try:
        costs = from_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"Expected costs that can be read, got {file}: {reason(error)}.") from error
    rows = list(costs.values()) if isinstance(costs, dict) else [None]
    entries = [entry for row in rows for entry in (row.values() if isinstance(row, dict) else [None])]
    if not all(isinstance(entry, dict) and is_number(entry.get("ms")) and entry["ms"] > 0 for entry in entries):
        raise RunError(f"Expected an update's cost for each gradient in {file}, got something else; remove it.")
    return costs

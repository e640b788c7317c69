"""Studies made to fit into a number of hours: as many paired seeds as that takes, and what so many cannot conclude."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.studies.comparisons import limits
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.knobs import family_of
from benchmarks.studies.packs import packed_seeds
from benchmarks.studies.study import TUNING_SEED, Study
from engine import SettingError
from engine.checks import positive, real

_WARM_UP, _TIMED = 2, 4


def seconds_of_a_seed(study: Study, difficulty: Any) -> float:
    """What one seed of every combination takes at this difficulty, in a pack as it will be trained."""
    seeds = packed_seeds(study, difficulty)
    trainer = study.experiment(difficulty, seeds).trainer()
    batch = next(trainer.batches())
    for _ in range(_WARM_UP):
        trainer.update(*batch)
    started = time.perf_counter()
    for _ in range(_TIMED):
        trainer.update(*batch)
    update = (time.perf_counter() - started) / _TIMED
    started = time.perf_counter()
    trainer.test()
    tested = time.perf_counter() - started
    return study.epochs * (trainer.updates_per_epoch * update + tested) / len(seeds)


def sized(
    study: Study, hours: float, out: Path, measure: Callable[[Study, Any], float] = seconds_of_a_seed
) -> tuple[Study, list[str]]:
    """The study with as many seeds as fit, and what to know of it; one that was begun keeps the seeds it has.

    Raises:
        SettingError: hours that are not enough for one seed.
    """
    budget = 3600.0 * positive("hours above 0", real("hours above 0", hours))
    names = [family_of(text) for text in study.gradients] if study.tune_knobs else study.gradients
    compared = len(set(names)) * len(study.clippings)
    comparisons = max(1, (compared - len(study.clippings)) * len(study.difficulties))
    if StudyDirectory.is_at(out):
        count = int(StudyDirectory(out).config["seeds"])
        told = f"This study was begun with {count} paired seeds and keeps them."
        return replace(study, seed_count=count), [told, *limits(comparisons, count)]
    everything = sum(measure(study, difficulty) for difficulty in study.difficulties)
    crossed = len(study.gradients) * len(study.clippings) * len(study.learning_rates)
    tuning = everything * study.tuning_seed_count if study.tunes else 0.0
    each = everything * compared / crossed
    count = min(TUNING_SEED, int((budget - tuning) / each))
    if count < 1:
        raise SettingError(
            f"Expected at least {(tuning + each) / 3600:.2g} hours, which one seed of this study takes on this "
            f"machine, got {hours:g}; take fewer gradients, difficulties or epochs."
        )
    places = f"{len(study.difficulties)} {'difficulty' if len(study.difficulties) == 1 else 'difficulties'}"
    told = (
        f"{count} paired seeds of {compared} variants, at {places} and for {study.epochs} epochs, fit into {hours:g} "
        f"hours: {(tuning + count * each) / 3600:.2g} hours as fast as the machine is now."
    )
    return replace(study, seed_count=count), [told, *limits(comparisons, count)]

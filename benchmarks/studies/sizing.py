"""Studies made to fit into a number of hours: as many paired seeds as that takes, and what so many cannot conclude."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.studies.comparisons import limits
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import packed_seeds
from benchmarks.studies.study import TUNING_SEED, Study
from benchmarks.studies.tuning import choices, to_tune
from benchmarks.timing import seconds_of
from engine import SettingError
from engine.checks import positive, real
from training import Experiment


def seconds_of_an_epoch(experiment: Experiment) -> float:
    """What an epoch of all its members together takes here; a start for validation is taken to cost one for tests."""
    trainer, settings = experiment.trainer(), experiment.settings
    batch = next(trainer.batches())
    update, test = seconds_of(lambda: trainer.update(*batch)), seconds_of(trainer.test)
    return trainer.updates_per_epoch * update + (1 + settings.validation_samples / settings.test_samples) * test


def seconds_of_a_seed(study: Study, difficulty: Any) -> float:
    """What one seed of every combination takes at this difficulty, in a pack as it will be trained."""
    seeds = packed_seeds(study, difficulty)
    return study.epochs * seconds_of_an_epoch(study.experiment(difficulty, seeds)) / len(seeds)


def sized(
    study: Study, hours: float, out: Path, measure: Callable[[Study, Any], float] = seconds_of_a_seed
) -> tuple[Study, list[str]]:
    """The study with as many seeds as fit, and what to know of it; one that was begun keeps the seeds it has.

    Raises:
        SettingError: hours that are not enough for one seed.
    """
    budget = 3600.0 * positive("hours above 0", real("hours above 0", hours))
    groups = choices(study)
    compared, crossed = len(groups), sum(map(len, groups))
    comparisons = max(1, (compared - len(study.clippings)) * len(study.difficulties))
    if StudyDirectory.is_at(out):
        count = int(StudyDirectory(out).config["seeds"])
        told = f"This study was begun with {count} paired seeds and keeps them."
        return replace(study, seed_count=count), [told, *limits(comparisons, count)]
    everything = sum(measure(study, difficulty) for difficulty in study.difficulties)
    tuning = everything * len(to_tune(study)) / crossed * study.tuning_seed_count
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

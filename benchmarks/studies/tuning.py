"""What is chosen on tuning seeds: one variant of each gradient, or of each family of them, with each clipping."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from benchmarks.studies.directory import Result
from benchmarks.studies.spaces import family_of
from benchmarks.studies.statistics import interquartile_mean
from benchmarks.studies.study import Study
from training.variant import Variant


def choices(study: Study) -> list[tuple[Variant, ...]]:
    """All variants of a study, in groups of which one each is reported.

    A group is a gradient with its learning rates, and where gradients' own numbers are tuned with those too.
    """
    found: dict[tuple[str, str], list[Variant]] = {}
    for variant in (Variant(*each) for each in product(study.gradients, study.clippings, study.learning_rates)):
        key = family_of(variant.gradient) if study.tune_knobs else variant.gradient
        found.setdefault((key, variant.clipping), []).append(variant)
    return [tuple(group) for group in found.values()]


def to_tune(study: Study) -> tuple[Variant, ...]:
    """What is trained on the tuning seeds: what there is a choice of."""
    return tuple(variant for group in choices(study) if len(group) > 1 for variant in group)


def best_tuned(study: Study, results: Sequence[Result], difficulty: Any) -> tuple[Variant, ...]:
    """Of each group the variant with the lowest interquartile mean of final tuning losses, the first of equal ones."""
    finals: dict[Variant, list[float]] = {}
    for result in results:
        if result.phase == "tuning" and result.difficulty == difficulty:
            finals.setdefault(result.variant, []).append(result.final_loss)

    def loss(variant: Variant) -> float:
        return float(interquartile_mean(finals[variant]))

    return tuple(group[0] if len(group) == 1 else min(group, key=loss) for group in choices(study))

"""What tuning did: with how many trainings, of what it chose, and what a gradient's own number does to its loss."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.spaces import OPEN, Space, families, family_of, spaces
from benchmarks.studies.statistics import interquartile_mean, interval
from training import task_options
from training.gradients import rank_of
from training.style import legend_below, losses_upward, panel_figure, save, save_ours
from training.variant import Variant
from training.viewing.palette import styles_of


def tuning_budgets(results: Sequence[Result], numbers_chosen: bool) -> list[str]:
    """How many trainings each gradient was tuned with, in a sentence; nothing where none was.

    Where their own numbers are chosen, those of a family are counted together.
    """

    def of(result: Result) -> str:
        return family_of(result.variant.gradient) if numbers_chosen else result.variant.gradient

    tuned = [result for result in results if result.phase == "tuning"]
    if not tuned:
        return []
    counts = {of(result): 0 for result in results}
    for result in tuned:
        counts[of(result)] += result.difficulty == tuned[0].difficulty
    if len(set(counts.values())) == 1:
        return [f"Each was tuned with {next(iter(counts.values()))} trainings on seeds that are not reported."]
    told = ", ".join(
        f"{family} {count}" for family, count in sorted(counts.items(), key=lambda entry: rank_of(entry[0]))
    )
    return [f"Trainings for tuning, on seeds that are not reported, which favours those with more: {told}."]


def search_told(study: Mapping[str, Any], results: Sequence[Result], difficulty: str) -> list[str]:
    """What Optuna searched and what it chose, in sentences, by a study's configuration; nothing where it did not."""
    tuned = [result for result in results if result.phase == "tuning"]
    if not study.get("trials") or not tuned:
        return []
    kind, options = task_options(study["task"]), {result.difficulty: result.options for result in results}
    horizon = min(kind(**given).build().horizon for given in options.values())
    every = spaces(study["gradients"], study["clippings"], study["learning_rates"], horizon)
    seeds, (low, high) = sorted({result.label.seed for result in tuned}), every[0].rates
    where = {space.family: space.numbers for space in every}
    searched = [f"learning rates from {low:.3g} to {high:.3g}"]
    searched += [
        f"the number of {family} from {ends[0]:.3g} to {ends[1]:.3g}" for family, ends in where.items() if ends
    ]
    told = [
        f"Optuna tried {study['trials']} settings of each variant at each value of {difficulty}, the first as given, "
        f"for {study['epochs']} epochs on seeds {seeds[0]} to {seeds[-1]}, none of which is reported.",
        f"It searched {', '.join(searched)}.",
    ]
    alone = [family for family, ends in where.items() if not ends]
    if alone:
        told.append(f"Without a number of their own to search, with their learning rate alone: {', '.join(alone)}.")
    for at in study["difficulties"]:
        chosen = dict.fromkeys(one.variant for one in results if one.phase == "report" and one.difficulty == at)
        names = [f"{variant.short} at a learning rate of {variant.learning_rate:.3g}" for variant in chosen]
        if names:
            told.append(f"Chosen at {difficulty} {at}: {'; '.join(names)}.")
        for space in every:
            if _all_diverged([one for one in tuned if one.difficulty == at], space):
                name = space.given.short
                told.append(f"Every trial of {name} at {difficulty} {at} diverged; it is reported as given, untuned.")
    return told


def _all_diverged(tuned: Sequence[Result], space: Space) -> bool:
    """Whether no trial of a variant, at one difficulty, has a finite mean over its seeds."""
    finals: dict[Variant, list[float]] = {}
    for one in tuned:
        if (family_of(one.variant.gradient), one.variant.clipping) == (space.family, space.given.clipping):
            finals.setdefault(one.variant, []).append(one.final_loss)
    return not any(math.isfinite(interquartile_mean(losses)) for losses in finals.values())


def knob_panels(out: Path | StudyDirectory, path: Path | None = None) -> Path | None:
    """Final loss of each family against its number, one panel for each difficulty; None where there is no family.

    Over the tuning seeds where numbers were tried there, else over the reported; at the best learning rate of each.
    """
    directory = StudyDirectory.at(out)
    tuned = [result for result in directory.results if result.phase == "tuning"]
    results = tuned if families([one.variant.gradient for one in tuned]) else directory.reported
    found = families(list(dict.fromkeys(result.variant.gradient for result in results)))
    if not found:
        return None
    difficulties = list(dict.fromkeys(result.difficulty for result in results))
    figure, panels = panel_figure(len(difficulties), "final test loss (interquartile mean, 95%)")
    styles = styles_of(found)
    positive = all(knob > 0 for texts in found.values() for knob in texts)
    for axes, difficulty in zip(panels, difficulties, strict=True):
        here = [result for result in results if result.difficulty == difficulty]
        for family, texts in found.items():
            points = [(knob, *point) for knob, text in texts.items() for point in _best_point(here, text)]
            if points:
                knobs, middle, low, high = zip(*points, strict=True)
                axes.plot(knobs, middle, **styles[family].line(len(knobs)), label=family)
                axes.fill_between(knobs, low, high, color=styles[family].colour, alpha=0.15, linewidth=0)
        scale = "log" if positive else "linear"
        axes.set(title=f"{directory.difficulty} {difficulty}", xlabel=f"the number in place of {OPEN}", xscale=scale)
        losses_upward(axes)
        axes.grid(alpha=0.25)
    legend_below(figure, panels)
    return save(figure, path) if path is not None else save_ours(figure, directory.path / "knobs.png")


def _best_point(results: Sequence[Result], text: str) -> Iterator[tuple[float, float, float]]:
    """(middle, low, high) of a gradient's final losses at its best learning rate and clipping, if it was trained."""
    finals: dict[Any, list[float]] = {}
    for result in results:
        if result.variant.gradient == text:
            finals.setdefault(result.variant, []).append(result.final_loss)
    if finals:
        losses = min(finals.values(), key=interquartile_mean)
        low, high = interval(losses)
        yield float(interquartile_mean(losses)), float(low), float(high)

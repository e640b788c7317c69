"""A gradient's own number, the last one of its outermost part: families that differ in it alone, and what it does."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.statistics import interquartile_mean, interval
from training.gradients import rank_of
from training.grammar import Call, parse
from training.style import legend_below, panel_figure, plain_log, save, save_ours
from training.viewing.palette import styles_of

_OPEN = "·"


def family_of(text: str) -> str:
    """A gradient's text with the last number of its outermost part open: clip-norm(R, ·); itself where it has none."""
    return _split(text)[0]


def families(gradients: Sequence[str]) -> dict[str, dict[float, str]]:
    """Families of at least two gradients: their texts by their number, in its order."""
    found: dict[str, dict[float, str]] = {}
    for text in gradients:
        family, knob = _split(text)
        if knob is not None:
            found.setdefault(family, {})[knob] = text
    return {family: dict(sorted(texts.items())) for family, texts in found.items() if len(texts) > 1}


def tuning_budgets(results: Sequence[Result]) -> list[str]:
    """How many trainings each gradient or family was tuned with, in a sentence; nothing where none was."""
    counts: dict[str, int] = {}
    tuned = [result for result in results if result.phase == "tuning"]
    for result in tuned:
        if result.difficulty == tuned[0].difficulty:
            family = family_of(result.variant.gradient)
            counts[family] = counts.get(family, 0) + 1
    if not counts:
        return []
    if len(set(counts.values())) == 1:
        return [f"Each was tuned with {next(iter(counts.values()))} trainings on seeds that are not reported."]
    told = ", ".join(
        f"{family} {count}" for family, count in sorted(counts.items(), key=lambda entry: rank_of(entry[0]))
    )
    return [f"Trainings for tuning, on seeds that are not reported, which favours those with more: {told}."]


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
        axes.set(title=f"{directory.difficulty} {difficulty}", xlabel=_OPEN, xscale=scale, yscale="log")
        plain_log(axes.yaxis)
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


def _split(text: str) -> tuple[str, float | None]:
    """A family and the number that is left open in it: the last of the outermost part, never one inside another."""
    call = parse(text)
    numbers = [place for place, (_, value) in enumerate(call.arguments) if not isinstance(value, Call)]
    if not numbers:
        return text, None
    knob = call.arguments[numbers[-1]][1]
    assert not isinstance(knob, Call)
    parts = [_OPEN if place == numbers[-1] else _written(value) for place, (_, value) in enumerate(call.arguments)]
    return f"{call.name}({', '.join(parts)})", knob


def _written(value: float | Call) -> str:
    if not isinstance(value, Call):
        return repr(value).removesuffix(".0")
    inner = ", ".join(_written(entry) for _, entry in value.arguments)
    return f"{value.name}({inner})" if value.arguments else value.name

"""What a study compared: a row for each variant at each difficulty, tests against one, and what cannot be concluded."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.spaces import family_of
from benchmarks.studies.statistics import (
    holm,
    interquartile_mean,
    interval,
    least_p,
    percentiles,
    probability_better,
    rank_lead,
    seeds_needed,
    sign_flip_test,
    success_interval,
)
from benchmarks.studies.study import SEEDS_BEFORE
from benchmarks.tables import table_lines
from engine import FULL, SettingError
from training.gradients import rank_of, text_of
from training.optimisers import optimiser_named
from training.variant import Variant

LEVEL = 0.05
"""Of the tests, after correction for all that one report makes."""
PERCENTILES = (10, 25, 50, 75, 90)
AGAINST = text_of(FULL)
"""The gradient that others are compared with, unless another is wanted."""


def check_against(against: str, gradients: Sequence[str], numbers_chosen: bool) -> None:
    """SettingError unless a gradient that others are to be compared with is one of them.

    Where gradients' own numbers are chosen, one of the same family stands for it.
    """
    known = map(family_of, gradients) if numbers_chosen else gradients
    if (family_of(against) if numbers_chosen else against) not in known:
        raise SettingError(
            f"Expected --against one of the gradients {', '.join(gradients)}, got {against}; name one of them, or "
            "train it too."
        )


def chooses_numbers(study: Mapping[str, Any]) -> bool:
    """Whether a study, by its configuration, reports of each family of gradients the one with the best number."""
    return bool(study.get("tune_knobs") or study.get("trials"))


@dataclass(frozen=True)
class Row:
    """One variant at one difficulty, over its seeds.

    Losses are interquartile means of final test losses with a 95% bootstrap interval; a training that diverged counts
    as an infinite loss, and as no success. `better` is the share of the `pairs` of seeds on which the variant ends
    below `against` with the same clipping, with its 95% interval; `share` is its loss over that of `against`, both over
    those pairs; p of their exact sign-flip test, as it is and corrected by Holm over all comparisons of the report, and
    `lead` which way it leans, above 0 where the variant is lower. `percentiles` are runs at 10, 25, 50, 75 and 90%.
    """

    difficulty: Any
    gradient: str
    clipping: str
    learning_rate: float
    seeds: int
    loss: float
    loss_low: float
    loss_high: float
    success: float | None
    success_low: float | None
    success_high: float | None
    diverged: float
    against: str
    pairs: int
    better: float | None
    better_low: float | None
    better_high: float | None
    share: float | None
    lead: float | None
    p: float | None
    p_corrected: float | None
    percentiles: list[float]
    update_ms: float | None
    cost_of_against: float | None
    memory_bytes: int | None

    @property
    def verdict(self) -> str:
        """Whether it is told from what it is compared with: better, worse, or nothing."""
        if self.p_corrected is None or self.lead is None or self.p_corrected > LEVEL:
            return ""
        return "better" if self.lead > 0 else "worse"

    @property
    def name(self) -> str:
        return Variant(self.gradient, self.clipping).short


def table(
    out: Path | StudyDirectory, threshold: float | None, costs: dict[str, dict[str, Any]], against: str = AGAINST
) -> list[Row]:
    """One row for each difficulty and variant.

    Args:
        out: the study.
        threshold: a loss below it is a success.
        costs: as `measure_costs` finds them, by difficulty and gradient.
        against: the gradient that others are compared with; where numbers are chosen, that of its family.
    """
    directory = StudyDirectory.at(out)
    groups, rows = grouped(directory.reported), []
    for (difficulty, letter, clipping), group in groups.items():
        there = [text for at, text, clipped in groups if (at, clipped) == (difficulty, clipping)]
        named = _compared_with(against, there, chooses_numbers(directory.config))
        other = groups.get((difficulty, named, clipping), []) if letter != named else []
        rows.append(_row(group, other, named, threshold, costs.get(str(difficulty), {})))
    return corrected(rows)


def _compared_with(against: str, there: Sequence[str], numbers_chosen: bool) -> str:
    """The gradient of those that others are compared with: as it is named, or with the number that was chosen."""
    if against in there or not numbers_chosen:
        return against
    return next((text for text in there if family_of(text) == family_of(against)), against)


def compared_with(rows: Sequence[Row]) -> str:
    """What others are compared with: one gradient, or its family where its number is not the same in all rows."""
    names = dict.fromkeys(row.against for row in rows if row.p is not None) or dict.fromkeys(r.against for r in rows)
    return next(iter(names), AGAINST) if len(names) < 2 else family_of(next(iter(names)))


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Rows whose p are corrected by Holm for as many comparisons as there are in all of them."""
    found = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_corrected=next(found)) for row in rows]


def _row(group: list[Result], other: list[Result], against: str, threshold: float | None, cost: dict[str, Any]) -> Row:
    """A variant's row, beside the results that it is compared with; `cost` by gradient."""
    losses = [result.final_loss for result in group]
    low, high = interval(losses)
    wins = None if threshold is None else sum(loss < threshold for loss in losses)
    rate = (None, None) if wins is None else success_interval(wins, len(losses))
    theirs_by_seed = {result.label.seed: result.final_loss for result in other}
    paired = [result for result in group if result.label.seed in theirs_by_seed]
    ours, theirs = (
        [result.final_loss for result in paired],
        [theirs_by_seed[result.label.seed] for result in paired],
    )
    better = probability_better(ours, theirs) if paired else None
    bounds = (None, None) if better is None else success_interval(better * len(paired), len(paired))
    variant, mine, cost_of_against = group[0].variant, cost.get(group[0].variant.gradient), cost.get(against)
    return Row(
        group[0].difficulty,
        variant.gradient,
        variant.clipping,
        variant.learning_rate,
        len(losses),
        float(interquartile_mean(losses)),
        float(low),
        float(high),
        None if wins is None else wins / len(losses),
        rate[0],
        rate[1],
        sum(math.isinf(loss) for loss in losses) / len(losses),
        against,
        len(paired),
        better,
        bounds[0],
        bounds[1],
        _share(ours, theirs) if paired else None,
        rank_lead(ours, theirs) if paired else None,
        sign_flip_test(ours, theirs) if paired else None,
        None,
        percentiles(losses, PERCENTILES),
        mine["ms"] if mine else None,
        mine["ms"] / cost_of_against["ms"] if mine and cost_of_against else None,
        mine["bytes"] if mine else None,
    )


def _share(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """One interquartile mean over another; None where that says nothing, of losses that may be below 0 or infinite."""
    loss, base = float(interquartile_mean(ours)), float(interquartile_mean(theirs))
    return loss / base if base > 0 and math.isfinite(base) and loss >= 0 else None


def conclusions(rows: Sequence[Row]) -> list[str]:
    """What the comparisons say, and what so few seeds cannot say, in sentences."""
    compared = [row for row in rows if row.p is not None]
    if not compared:
        return ["Nothing is compared here: what others are compared with was not trained beside them."]
    against = compared_with(rows)
    found = [
        f"{counted(len(compared), 'comparison')} with {against} by exact sign-flip tests over paired seeds, corrected "
        f"for their number by Holm's method at {LEVEL:.0%}."
    ]
    for verdict in ("better", "worse"):
        names = [f"{row.name} at {row.difficulty}" for row in compared if row.verdict == verdict]
        found.append(f"{verdict.capitalize()} than {against}: {', '.join(names) if names else 'none'}.")
    by_pairs: dict[int, list[str]] = {}
    for row in compared:
        by_pairs.setdefault(row.pairs, []).append(f"{row.name} at {row.difficulty}")
    for pairs, names in sorted(by_pairs.items()):
        of = f"{', '.join(names)}: " if len(by_pairs) > 1 else ""
        # Holm's method takes the smallest p first: those that more seeds told apart count no longer.
        apart = sum(row.pairs > pairs and row.verdict in ("better", "worse") for row in compared)
        found += [of + sentence for sentence in limits(len(compared) - apart, pairs)]
    return found


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 comparison, 2 comparisons."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def same_told(results: Sequence[Result]) -> list[str]:
    """Variants with the same losses to the last bit, in a sentence for each pair: what sets them apart never acted."""
    curves: dict[tuple[Any, str], dict[int, tuple[float, ...]]] = {}
    for one in results:
        curves.setdefault((one.difficulty, one.variant.short), {})[one.label.seed] = one.test_loss
    return [
        f"{name} and {other} have the same losses in every epoch of every seed at {difficulty}: what sets them apart "
        "never acted there, and they are one gradient."
        for (difficulty, name), (at, other) in itertools.combinations(curves, 2)
        if difficulty == at and curves[difficulty, name] == curves[at, other] and _finite(curves[at, other])
    ]


def _finite(curves: Mapping[int, Sequence[float]]) -> bool:
    return all(math.isfinite(loss) for curve in curves.values() for loss in curve)


def more_seeds_told(study: Mapping[str, Any]) -> list[str]:
    """That a study was given more seeds when results were known, in a sentence; nothing where it was not."""
    before = study.get(SEEDS_BEFORE)
    if not before:
        return []
    return [
        f"It had {', then '.join(map(str, before))} paired seeds when results were known, and was given more, up to "
        f"{study['seeds']}: where such results decide whether there are more, p is smaller than it should be."
    ]


def limits(comparisons: int, seeds: int) -> list[str]:
    """What so many comparisons over so few paired seeds cannot conclude, in sentences."""
    needed, alone = seeds_needed(comparisons), seeds_needed(1)
    if seeds < needed:
        one = "not even one alone could" if seeds < alone else "one that was chosen beforehand could"
        return [
            f"With {counted(seeds, 'paired seed')} none of {counted(comparisons, 'comparison')} can tell two variants "
            f"apart, even if one wins on every seed (p is at least {least_p(seeds):.2g}): that takes {needed} seeds; "
            f"{one}."
        ]
    found = [
        f"With {seeds} paired seeds a variant that wins on all of them can be told from another; those that are not "
        "told apart may differ all the same."
    ]
    if seeds < 20:
        found.append(f"{seeds} seeds are few for a claim that stands by itself; 20 are meant for one.")
    return found


def grouped(results: Sequence[Result]) -> dict[tuple[Any, str, str], list[Result]]:
    """Results by (difficulty, gradient, clipping), seeds in order, gradients in the order of their registration."""
    found: dict[tuple[Any, str, str], list[Result]] = {}
    for result in sorted(results, key=lambda entry: entry.label.seed):
        found.setdefault((result.difficulty, result.variant.gradient, result.variant.clipping), []).append(result)
    order = list(dict.fromkeys(result.difficulty for result in results))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), rank_of(item[0][1]))))


def seeds_done(rows: Sequence[Row], study: dict[str, Any]) -> str:
    """How many seeds a study has, such as "4 of 10" as long as it is not done."""
    most = max((row.seeds for row in rows), default=0)
    return f"{study['seeds']}" if most >= study["seeds"] else f"{most} of {study['seeds']}"


def markdown(rows: list[Row], study: dict[str, Any], threshold: float | None, said: Sequence[str]) -> str:
    """The table with what is `said` of it in sentences."""
    against = compared_with(rows)
    success = f"below {threshold:g}" if threshold is not None else "success"
    head = ["difficulty", "variant", "rate", "seeds", "loss (IQM, 95%)", "50%, 90% of runs", success, "diverged",
            f"better than {against} (95%)", "p (Holm)", "ms an update", f"cost / {against}", "memory"]  # fmt: skip
    lines = []
    for row in rows:
        rate = "" if row.success is None else f"{row.success:.0%} ({row.success_low:.0%} to {row.success_high:.0%})"
        lines.append(
            [
                str(row.difficulty),
                row.name,
                f"{row.learning_rate:g}",
                str(row.seeds),
                f"{row.loss:.3g} ({row.loss_low:.3g} to {row.loss_high:.3g})",
                f"{row.percentiles[2]:.3g}, {row.percentiles[4]:.3g}",
                rate,
                f"{row.diverged:.0%}",
                better(row),
                significance(row),
                "" if row.update_ms is None else f"{row.update_ms:.2f}",
                "" if row.cost_of_against is None else f"{row.cost_of_against:.2f}",
                "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.1f} MiB",
            ]
        )
    note = (
        "Losses are interquartile means of the final test loss over seeds with a 95% bootstrap interval (expanded "
        "percentiles), beside what 50% and 90% of the runs are at or below; a training that diverged counts as "
        "infinite loss and as no success. `better`: share of paired seeds on which the variant ends below the other, "
        "ties counted half. `p (Holm)`: of the exact sign-flip test, corrected for all comparisons here. Cost and "
        "memory: one training alone, the update's median and the planned buffers."
    )
    validated = study["settings"].get("validation_samples")
    if validated:
        note += f" Of each training the epoch is reported that is best on {validated} starts for validation."
    name = study["settings"]["optimiser"]
    note += f" Optimiser: {name}, {optimiser_named(name).description}."
    title = f"# {study['task']}: {study['epochs']} epochs, {seeds_done(rows, study)} paired seeds"
    told = [f"- {sentence}" for sentence in said]
    return "\n".join([title, "", *table_lines(head, lines), "", *told, "", note, ""])


def better(row: Row) -> str:
    """The share of paired seeds on which a row is below `row.against`, with its interval."""
    if row.better is None:
        return ""
    return f"{row.better:.2f} ({row.better_low:.2f} to {row.better_high:.2f})"


def significance(row: Row) -> str:
    """The corrected p of a row with what it says."""
    return "" if row.p_corrected is None else f"{row.p_corrected:.2g} {row.verdict}".rstrip()

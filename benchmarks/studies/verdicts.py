"""Who wins in a programme of studies, by how much and since when, and how far a single seed would have misled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.comparisons import AGAINST, LEVEL, grouped
from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.statistics import holm, interquartile_mean, sign_flip_test
from training.files import write_ours
from training.variant import Variant


@dataclass(frozen=True)
class Verdict:
    """One gradient beside `AGAINST` at one difficulty with one clipping, over the seeds that both have.

    Attributes:
        losses: interquartile means of final test losses, the gradient's and the other's.
        since: the epoch from which on, to the end, the one that ends lower has the lower interquartile mean.
        misled: on how many of the seeds the other one of the two ends lower.
        p: of the exact sign-flip test, corrected by Holm where several are told together.
    """

    task: str
    difficulty: Any
    clipping: str
    gradient: str
    seeds: int
    losses: tuple[float, float]
    since: int
    misled: int
    p: float

    @property
    def winner(self) -> str:
        return self.gradient if self.losses[0] < self.losses[1] else AGAINST

    @property
    def told(self) -> str:
        """The winner where the test tells the two apart, else that it does not."""
        return f"**{self.winner}**" if self.p <= LEVEL else f"not told apart, {self.winner} lower"


def verdicts(studies: Mapping[str, StudyDirectory], gradients: Sequence[str] = ("C",)) -> list[Verdict]:
    """Those of every study, by the name of its task, whose p are corrected for all of them."""
    found = []
    for task, study in studies.items():
        groups = grouped(study.reported)
        for (difficulty, gradient, clipping), group in groups.items():
            other = groups.get((difficulty, AGAINST, clipping), [])
            if gradient in gradients and other:
                found.append(_verdict(task, gradient, group, other))
    corrected = holm([verdict.p for verdict in found])
    return [replace(verdict, p=p) for verdict, p in zip(found, corrected, strict=True)]


def _verdict(task: str, gradient: str, group: list[Result], other: list[Result]) -> Verdict:
    theirs = {result.label.seed: result for result in other}
    pairs = [(result, theirs[result.label.seed]) for result in group if result.label.seed in theirs]
    finals = [tuple(one.final_loss for one in pair) for pair in pairs]
    ours, others = (list(each) for each in zip(*finals, strict=True))
    losses = float(interquartile_mean(ours)), float(interquartile_mean(others))
    sign = 1.0 if losses[0] < losses[1] else -1.0
    misled = sum(sign * (theirs - mine) < 0 for mine, theirs in finals if mine != theirs)
    first = group[0]
    return Verdict(
        task,
        first.difficulty,
        first.variant.clipping,
        gradient,
        len(pairs),
        losses,
        _since(pairs, sign),
        misled,
        sign_flip_test(ours, others),
    )


def _since(pairs: Sequence[tuple[Result, Result]], sign: float) -> int:
    """The epoch after the last one at which the gradient that ends lower was not lower; what diverged is infinite."""
    curves = [np.array([pair[side].test_loss for pair in pairs], dtype=float).T for side in (0, 1)]
    ours, others = (interquartile_mean(np.where(np.isnan(curve), math.inf, curve), axis=1) for curve in curves)
    behind = np.flatnonzero(~(ours < others if sign > 0 else others < ours))
    return int(behind[-1]) + 2 if len(behind) else 1


def write_verdicts(studies: Mapping[str, StudyDirectory], out: Path, gradients: Sequence[str] = ("C",)) -> Path | None:
    """Write verdicts.md into a directory; returns its path, or None where there is nothing to compare."""
    found = verdicts(studies, gradients)
    if not found:
        return None
    head = ["task", "difficulty", "variant", "seeds", "its loss", f"{AGAINST}'s", "lower by", "since epoch"]
    head += ["told apart", "p (Holm)", "seeds that say otherwise"]
    lines = [_line(head), _line(["---"] * len(head))]
    for verdict in found:
        low, high = sorted(verdict.losses)
        by = f"{high / low:.3g} times" if low > 0 and math.isfinite(high) else ""
        option = studies[verdict.task].difficulty
        lines.append(
            _line(
                [
                    verdict.task,
                    f"{option} {verdict.difficulty}",
                    Variant(verdict.gradient, verdict.clipping).short,
                    str(verdict.seeds),
                    f"{verdict.losses[0]:.3g}",
                    f"{verdict.losses[1]:.3g}",
                    by,
                    str(verdict.since),
                    verdict.told,
                    f"{verdict.p:.2g}",
                    f"{verdict.misled} of {verdict.seeds}",
                ]
            )
        )
    note = (
        "Interquartile means of final test losses over paired seeds. `since epoch`: from there to the end the one that "
        "ends lower is lower. `told apart`: by exact sign-flip tests, corrected by Holm for all rows, at "
        f"{LEVEL:.0%}. `seeds that say otherwise`: a study of one of these alone would have named the other."
    )
    return write_ours(out / "verdicts.md", "\n".join([*lines, "", note, ""]))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

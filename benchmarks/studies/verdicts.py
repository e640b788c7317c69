"""Who wins in a programme of studies, by how much and since when, and how far a single seed would have misled."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.studies.comparisons import AGAINST, LEVEL, Row, corrected, grouped, table
from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.statistics import interquartile_mean
from benchmarks.tables import table_lines
from training.files import write_ours


@dataclass(frozen=True)
class Verdict:
    """One gradient beside `AGAINST` at one difficulty with one clipping.

    Attributes:
        row: the gradient's, with p corrected for all that are told together.
        other: the loss of `AGAINST`, over its seeds as the row's is over its own.
        since: the epoch from which on, to the end, the one that ends lower has the lower interquartile mean; None where
            none is.
    """

    task: str
    row: Row
    other: float
    since: int | None

    @property
    def ahead(self) -> bool:
        return self.row.loss < self.other

    @property
    def misled(self) -> float:
        """On how many of the paired seeds the other one of the two ends lower, ties counted half."""
        better = self.row.better or 0.0
        return round(self.row.pairs * (1.0 - better if self.ahead else better), 1)

    @property
    def told(self) -> str:
        """The winner where the test tells the two apart, else that it does not."""
        lower = "level" if self.row.loss == self.other else f"{self.row.gradient if self.ahead else AGAINST} lower"
        if not self.row.verdict:
            return f"not told apart, {lower}"
        better = self.row.verdict == "better"
        winner = f"**{self.row.gradient if better else AGAINST}**"
        return winner if better == self.ahead else f"{winner}, though in the mean {lower}"


def verdicts(studies: Mapping[str, StudyDirectory]) -> list[Verdict]:
    """Those of every study, by the name of its task, whose p are corrected for all of them."""
    tables = [(task, row) for task, study in studies.items() for row in table(study, None, {})]
    groups = {task: grouped(study.reported) for task, study in studies.items()}
    found = []
    for (task, _), row in zip(tables, corrected([row for _, row in tables]), strict=True):
        if row.p is None:
            continue
        mine, others = (groups[task][row.difficulty, name, row.clipping] for name in (row.gradient, AGAINST))
        other = float(interquartile_mean([result.final_loss for result in others]))
        found.append(Verdict(task, row, other, _since(mine, others, row.loss < other)))
    return found


def _since(mine: Sequence[Result], others: Sequence[Result], ahead: bool) -> int | None:
    """The epoch after the last one at which the gradient that ends lower was not lower; what diverged is infinite.

    None where that is the last, as where an earlier epoch is reported than the last, or where both ends are equal.
    """
    curves = [np.array([result.test_loss for result in group], dtype=float).T for group in (mine, others)]
    ours, theirs = (interquartile_mean(np.where(np.isnan(curve), math.inf, curve), axis=1) for curve in curves)
    behind = np.flatnonzero(~(ours < theirs if ahead else theirs < ours))
    first = int(behind[-1]) + 2 if len(behind) else 1
    return first if first <= len(ours) else None


def write_verdicts(studies: Mapping[str, StudyDirectory], out: Path) -> Path | None:
    """Write verdicts.md into a directory; returns its path, or None where there is nothing to compare."""
    found = verdicts(studies)
    if not found:
        return None
    head = ["task", "difficulty", "variant", "seeds", "its loss", f"{AGAINST}'s", "lower by", "since epoch"]
    head += ["told apart", "p (Holm)", "seeds that say otherwise"]
    lines = []
    for verdict in found:
        row, (low, high) = verdict.row, sorted((verdict.row.loss, verdict.other))
        lines.append(
            [
                verdict.task,
                f"{studies[verdict.task].difficulty} {row.difficulty}",
                row.name,
                str(row.pairs),
                f"{row.loss:.3g}",
                f"{verdict.other:.3g}",
                f"{high / low:.3g} times" if low > 0 and math.isfinite(high) else "",
                "" if verdict.since is None else str(verdict.since),
                verdict.told,
                f"{row.p_corrected:.2g}",
                f"{verdict.misled:g} of {row.pairs}",
            ]
        )
    note = (
        "Interquartile means of final test losses. `since epoch`: from there to the end the one that ends lower is "
        "lower. `told apart`: by exact sign-flip tests over paired seeds, corrected by Holm for all rows, at "
        f"{LEVEL:.0%}. `seeds that say otherwise`: a study of one of these alone would have named the other; ties "
        "count half."
    )
    page = [f"# Every gradient beside {AGAINST}", "", *table_lines(head, lines), "", note, ""]
    return write_ours(out / "verdicts.md", "\n".join(page))

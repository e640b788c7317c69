"""Several studies in one figure: a row for each gradient, a column for each task, one correction for all."""

import itertools
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from benchmarks.studies.comparisons import AGAINST, LEVEL, Row, corrected, table
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.spaces import family_of
from benchmarks.tables import table_lines
from training.files import write_ours
from training.gradients import rank_of
from training.style import WIDEST, new_figure, save_ours
from training.variant import Variant

# Ratios are coloured up to eight times better or worse.
_SPAN = 3.0
_LETTERS = 15
_FEW = 7  # columns; the heads of more are smaller


@dataclass(frozen=True)
class Column:
    """One task at one difficulty with one clipping: its rows by family of gradients, each compared with `AGAINST`."""

    title: str
    rows: dict[str, Row]

    def ratio(self, family: str) -> float:
        """A family's loss over that of `AGAINST` on the seeds of both; 1 of that itself, NaN where there is none."""
        share = 1.0 if family == AGAINST and family in self.rows else getattr(self.rows.get(family), "share", None)
        return math.nan if share is None else share


def columns(studies: Mapping[str, StudyDirectory]) -> list[Column]:
    """Those of all studies, by name, whose p are corrected by Holm for every comparison in all of them."""
    tables = {name: table(study, None, {}) for name, study in studies.items()}
    rows = iter(corrected([row for found in tables.values() for row in found]))
    by_title: dict[str, dict[str, Row]] = {}
    for name, found in tables.items():
        for row in itertools.islice(rows, len(found)):
            clipped = "" if row.clipping == "none" else f"\n{row.clipping} clipped"
            title = f"{name}\n{studies[name].difficulty} {row.difficulty}{clipped}"
            column, family = by_title.setdefault(title, {}), family_of(row.gradient)
            column[row.gradient if family in column else family] = row
    return [Column(title, of_families) for title, of_families in by_title.items()]


def write_matrix(studies: Mapping[str, StudyDirectory], out: Path) -> list[Path]:
    """Write matrix.md and matrix.png of these studies into a directory; returns their paths."""
    found = columns(studies)
    families = sorted(dict.fromkeys(family for column in found for family in column.rows), key=rank_of)
    return [
        write_ours(out / "matrix.md", _markdown(found, families)),
        save_ours(_figure(found, families), out / "matrix.png"),
    ]


def _markdown(found: list[Column], families: list[str]) -> str:
    head = ["gradient", *(column.title.replace("\n", ", ") for column in found)]
    lines = []
    for family in families:
        cells = []
        for column in found:
            row, ratio = column.rows.get(family), column.ratio(family)
            if row is None:
                cells.append("")
                continue
            share = "" if math.isnan(ratio) or family == AGAINST else f", {ratio:.2g} of {AGAINST}'s"
            own = "" if row.gradient == family else f", {row.gradient}"
            verdict = f", p {row.p_corrected:.2g}, **{row.verdict}**" if row.verdict else ""
            diverged = f", {row.diverged:.0%} diverged" if row.diverged else ""
            seeds = f"{row.pairs} of {row.seeds}" if 0 < row.pairs < row.seeds else f"{row.seeds}"
            cells.append(f"{_loss(row)} ({seeds}){share}{own}{verdict}{diverged}")
        lines.append([Variant(family).short, *cells])
    comparisons = sum(row.p is not None for column in found for row in column.rows.values())
    note = (
        f"Interquartile means of final test losses, the number of seeds in brackets; shares of {AGAINST}'s are over "
        f"the seeds that it has, too. {comparisons} comparisons with {AGAINST} by exact sign-flip tests, all corrected "
        f"together by Holm's method; better and worse at {LEVEL:.0%}. Of gradients with a number of their own, the one "
        "of those tried that was best on seeds that are not reported, a choice that others did not have; all with one "
        "learning rate. A cell is empty where that gradient was not trained, as one between held steps where none are "
        "held."
    )
    return "\n".join([f"# Losses of many gradients beside {AGAINST}'s", "", *table_lines(head, lines), "", note, ""])


def _figure(found: list[Column], families: list[str]) -> Figure:
    """Losses of `AGAINST`, and others' as shares of them, blue below and red above; told apart: ▲ better, ▼ worse."""
    ratios = np.array([[column.ratio(family) for column in found] for family in families])
    with np.errstate(divide="ignore"):
        shades = np.clip(np.log2(ratios), -_SPAN, _SPAN)
    figure, (axes,) = new_figure(WIDEST, 1.4 + 0.27 * len(families))
    image = axes.imshow(shades, cmap="RdBu_r", norm=Normalize(-_SPAN, _SPAN), aspect="auto")
    for y, family in enumerate(families):
        for x, column in enumerate(found):
            row = column.rows.get(family)
            if row is not None:
                mark = {"better": " ▲", "worse": " ▼"}.get(row.verdict, "")
                colour = "white" if abs(shades[y, x]) > 0.75 * _SPAN else "black"
                told = _loss(row) if family == AGAINST else _told(row, ratios[y, x])
                axes.text(x, y, told + mark, ha="center", va="center", fontsize=7, color=colour)
    small = 7 if len(found) <= _FEW else 6
    axes.set_xticks(range(len(found)), [_in_lines(column.title) for column in found], fontsize=small)
    names = [f"{family}: test loss" if family == AGAINST else Variant(family).short for family in families]
    axes.set_yticks(range(len(families)), names, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.set_label(
        f"test loss / {AGAINST}'s (less is better); ▲ better, ▼ worse than {AGAINST}, corrected for all cells"
    )
    return figure


def _in_lines(title: str) -> str:
    """A title whose lines fit above a narrow column."""
    return "\n".join(part for line in title.split("\n") for part in textwrap.wrap(line, _LETTERS))


def _loss(row: Row) -> str:
    return "diverged" if math.isinf(row.loss) else f"{row.loss:.3g}"


def _told(row: Row, ratio: float) -> str:
    if math.isinf(row.loss):
        return _loss(row)
    return f"loss {row.loss:.2g}" if math.isnan(ratio) else f"{ratio:.2g}"

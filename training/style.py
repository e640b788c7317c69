"""What all figures share: line styles that differ without colour too, plain ticks, and a legend under the panels.

Figures are at most `WIDEST` inches wide, so that their letters can be read where a page of 850 pixels shows them.
"""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from training.errors import RunError
from training.files import reason, write_ours, write_whole

WIDEST = 8.5
# Rows of a legend for which a figure has room, and the height of each further one in inches.
_LEGEND_ROWS, _LEGEND_ROW = 2, 0.195
_COLUMNS = 3  # of panels

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "legend.fontsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-5, 7),
    }
)


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels in each of `rows`, in inches, drawn without a display; panels by row."""
    figure = Figure(figsize=(min(width, WIDEST), height), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def panel_figure(count: int, label: str) -> tuple[Figure, list[Axes]]:
    """`count` panels to one scale upward, in rows of two or three, with room for a legend under them."""
    columns = 2 if count in (2, 4) else min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure, panels = new_figure(6.0 if columns == 1 else WIDEST, 2.7 * rows + 0.6, columns, rows, sharey=True)
    for index, axes in enumerate(panels):
        if index % columns == 0:
            axes.set_ylabel(label)
        if index >= count:
            axes.remove()
    return figure, panels[:count]


def picture_grid(count: int, title: float) -> tuple[Figure, list[Axes]]:
    """`count` square panels in rows of up to three, with `title` inches above each."""
    columns = 2 if count == 4 else min(count, _COLUMNS)
    rows, side = math.ceil(count / columns), WIDEST / _COLUMNS
    figure, panels = new_figure(columns * side, rows * (side + title), columns, rows)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, under them, with lines long enough to show their dashes; many rows of it make the
    figure higher.
    """
    shown: dict[Any, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        shown = dict(zip(labels, handles, strict=True)) | shown
    if not shown:
        return
    letters = max(len(label) for label in shown)
    room = int(figure.get_figwidth() * 72 / (45 + 5.2 * letters))
    columns = max(1, min(len(shown), room))
    more = max(0, math.ceil(len(shown) / columns) - _LEGEND_ROWS)
    figure.set_figheight(figure.get_figheight() + more * _LEGEND_ROW)  # panels keep their height
    figure.legend(
        shown.values(), shown.keys(), loc="outside lower center", frameon=False, handlelength=3.6,
        ncols=columns,
    )  # fmt: skip


def save(figure: Figure, path: Path) -> Path:
    """Write the figure, whole or not at all; the directory is made if it is not there. RunError if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(path, _rendered(figure, path))
    except OSError as error:
        raise RunError(f"Expected a figure that can be written, got {path}: {reason(error)}.") from error


def save_ours(figure: Figure, path: Path) -> Path:
    """As `save`, in place of an earlier one of ours or beside what is not; returns where it stands."""
    return write_ours(path, _rendered(figure, path))


def _rendered(figure: Figure, path: Path) -> bytes:
    settle(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:] or None)
    return buffer.getvalue()


def settle(figure: Figure) -> None:
    """Say so in panels of a log axis that have nothing to show, as where everything diverged; to be called last."""
    for axes in figure.axes:
        if axes.get_yscale() == "log" and not (_drawn(axes) > 0).any():
            axes.set(yscale="linear", ylim=(0, 1), xticks=[], yticks=[])
            axes.text(0.5, 0.5, "nothing finite to show", transform=axes.transAxes, ha="center", va="center")


def epochs_and_log(axes: Axes) -> None:
    """Whole epochs across and losses upward; to be called when lines are drawn."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    losses_upward(axes)


def losses_upward(axes: Axes) -> None:
    """A log axis upward with ticks in plain numbers, linear where what is drawn does not fit one."""
    values = _drawn(axes)
    if fits_log(values) or not len(values):
        axes.set_yscale("log")
        plain_log(axes.yaxis)


def fits_log(losses: np.ndarray) -> bool:
    """Whether finite losses have a place on a log axis: some are above 0, and none below it beyond rounding.

    Those of a user's objective may be below, such as a reward's negative.
    """
    return len(losses) > 0 and bool(losses.max() > 0 and losses.min() >= -1e-3 * losses.max())


def _drawn(axes: Axes) -> np.ndarray:
    """The finite heights of all lines."""
    values = np.concatenate([np.empty(0), *(np.ravel(line.get_ydata()) for line in axes.lines)]).astype(float)
    return values[np.isfinite(values)]


def plain_log(axis: Axis) -> None:
    """A log axis whose ticks are plain numbers: at decades, between them where there are few, never none.

    Numbers are all written out, or all as 1e-8 where some would have more than four places before their first digit.
    """
    low, high = sorted(axis.get_view_interval())
    if not 0 < low <= high < math.inf:  # nothing to show, as `settle` will say
        return
    subs = (1,) if high >= 100 * low else (1, 2, 5) if high > 10 * low else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=subs))
    if len(_inside(axis.get_majorticklocs(), low, high)) < 2:
        places = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        axis.set_major_locator(FixedLocator(_inside(places, low, high).tolist()))
    axis.set_major_formatter(FuncFormatter(plain_number if low >= 1e-4 and high < 1e7 else power))
    axis.set_minor_formatter(NullFormatter())
    if len(subs) > 1:
        axis.set_minor_locator(NullLocator())


def plain_number(value: float, _: object = None) -> str:
    """Written out, from ten thousand on in thousands (k) and millions (M)."""
    size = abs(value)
    if size >= 1e4:
        return f"{value / 1e3:g}k" if size < 1e6 else f"{value / 1e6:g}M"
    if size >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-3 or size == 0 else f"{value:.6f}".rstrip("0")


def power(value: float, _: object = None) -> str:
    """With one digit and a power of ten, as 2e-8."""
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _inside(values: Iterable[float], low: float, high: float) -> np.ndarray:
    return np.array([value for value in values if low <= value <= high])

"""What all figures share: a colour for each gradient that colour-blind readers can tell apart, and quiet axes."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from engine import RunError
from training.files import reason, write_ours, write_whole
from training.viewing import GRADIENT_COLOURS

# Okabe and Ito (2008).
COLOURS = {letter: f"#{colour:06X}" for letter, colour in GRADIENT_COLOURS.items()}
LINES = ("-", "--", ":", "-.")

matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels in each of `rows`, in inches, drawn without a display; panels by row."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


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
        values = np.concatenate([np.empty(0), *(np.ravel(line.get_ydata()) for line in axes.lines)]).astype(float)
        if axes.get_yscale() == "log" and not (np.isfinite(values) & (values > 0)).any():
            axes.set(yscale="linear", ylim=(0, 1), yticks=[])
            axes.text(0.5, 0.5, "nothing finite to show", transform=axes.transAxes, ha="center", va="center")


def epochs_and_log(axes: Axes) -> None:
    """Whole epochs across and a log axis upward, on which less than two decades have ticks in plain numbers between."""
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else range(1, 10)))
        axes.yaxis.set_minor_locator(LogLocator(subs=[]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

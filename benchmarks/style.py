"""What all figures share: a colour for each gradient that colour-blind readers can tell apart, and quiet axes."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.viewing import GRADIENT_COLOURS

# Okabe and Ito (2008).
COLOURS = {letter: f"#{colour:06X}" for letter, colour in GRADIENT_COLOURS.items()}
LINES = ("-", "--", ":", "-.")

matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def new_figure(width: float, height: float, columns: int = 1, **options) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels, in inches, drawn without a display."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.subplots(1, columns, squeeze=False, **options)
    return figure, list(axes[0])


def save(figure: Figure, path: Path) -> Path:
    """Write the figure; the directory is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path

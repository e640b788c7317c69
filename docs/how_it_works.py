"""Draws docs/how-it-works.svg: the chain of states, the policy, and the adjoint's way back through the rule."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
STATES = (0.9, 5.1, 9.3)
"""Where the states stand, from left to right."""


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.25, height: float = 0.74) -> None:
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0.02,rounding_size=0.14"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, fc="white", ec=colour, lw=1.6))
    axes.text(x, y, text, ha="center", va="center", fontsize=11, color="black")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    connection = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start, end, connectionstyle=connection, arrowstyle="-|>", mutation_scale=13, color=colour, lw=1.6
        )
    )


def note(axes: Axes, x: float, y: float, text: str, colour: str, align: str = "center") -> None:
    axes.text(x, y, text, ha=align, va="center", fontsize=10, color=colour)


def forward(axes: Axes) -> None:
    """The upper half: states, physics and policy."""
    for x, name in zip(STATES, ("$x_t$", "$x_{t+1}$", "$x_{t+2}$"), strict=True):
        box(axes, x, 4.6, name, GREY)
    for x, control in ((3.0, "$u_t$"), (7.2, "$u_{t+1}$")):
        box(axes, x, 4.6, "physics $S$", BLUE)
        box(axes, x - 1.05, 3.3, r"policy $\pi_\theta$", GREEN)
        arrow(axes, (x - 1.44, 4.6), (x - 0.66, 4.6), GREY)
        arrow(axes, (x + 0.66, 4.6), (x + 1.44, 4.6), GREY)
        arrow(axes, (x - 1.95, 4.2), (x - 1.55, 3.72), GREY)
        arrow(axes, (x - 0.4, 3.4), (x - 0.05, 4.2), GREY, 0.25)
        note(axes, x + 0.2, 3.7, control, GREY)


def backward(axes: Axes) -> None:
    """The lower half: adjoints, the two paths and the rule between them."""
    for x, name in zip(STATES, (r"$\lambda_t$", r"$\lambda_{t+1}$", r"$\lambda_{t+2}$"), strict=True):
        box(axes, x, 1.55, name, VERMILION)
    for x, now, later in ((3.0, "t", "t+1"), (7.2, "t+1", "t+2")):
        box(axes, x - 0.35, 1.55, "rule", VERMILION, 0.95)
        arrow(axes, (x - 0.86, 1.55), (x - 1.44, 1.55), VERMILION)
        arrow(axes, (x + 1.44, 1.72), (x + 0.16, 1.72), BLUE, 0.3)
        arrow(axes, (x + 1.44, 1.38), (x + 0.16, 1.38), GREEN, -0.3)
        note(axes, x + 0.85, 2.27, rf"$A^T\lambda_{{{later}}}$", BLUE)
        note(axes, x + 0.85, 0.83, rf"$K^T\mu_{{{now}}}$", GREEN)
        arrow(axes, (x - 0.35, 2.5), (x - 0.35, 1.95), GREY)
        note(axes, x - 0.35, 2.68, r"$\partial\ell/\partial x$", GREY)


def picture() -> Figure:
    figure = Figure(figsize=(10.2, 5.4), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10.2), ylim=(0, 5.4), aspect="equal")
    axes.axis("off")
    note(axes, 0.25, 5.2, "forwards", GREY, "left")
    note(axes, 0.25, 2.45, "backwards", VERMILION, "left")
    forward(axes)
    backward(axes)
    note(axes, 0.25, 0.3, "path through the physics", BLUE, "left")
    note(axes, 2.9, 0.3, "path through the policy", GREEN, "left")
    note(axes, 5.4, 0.3, "full (R): rule = the sum of all three;  M: without the policy path", VERMILION, "left")
    return figure


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "evenflow"  # the same file every time
    picture().savefig(Path(__file__).with_name("how-it-works.svg"), metadata={"Date": None})

"""Loss curves of one training: median and spread over seeds, group by group."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from training import RunDirectory, task_options
from training.style import epochs_and_log, legend_below, new_figure, save, save_ours
from training.summary import Group, groups
from training.tasks import difficulty_of
from training.variant import Label
from training.viewing.palette import Style, style_of, styles_of


def loss_figure(run: RunDirectory, labels: list[Label], path: Path | None = None) -> Path:
    """Draw the test losses of a run over its epochs, on a log axis, into `losses.png` of the run.

    One there that is not as it was drawn is a user's and stays; the figure stands beside it. Returns where it stands.

    Lines are medians over the seeds that did not diverge, bands reach from the lowest to the highest of them.
    """
    records = run.metrics()
    epochs = np.array([record["epoch"] for record in records])
    losses = np.array([[np.nan if loss is None else loss for loss in record["test_loss"]] for record in records])
    figure, (axes,) = new_figure(6, 4.0)
    shown = groups(labels)
    styles = styles_of(group.name for group in shown)
    for group in shown:
        draw_group(axes, epochs, losses[:, list(group.members)], group, styles[group.name])
    clippings = {label.variant.clipping for label in labels}
    clipped = f", clipping {labels[0].variant.clipping}" if len(clippings) == 1 and clippings != {"none"} else ""
    several = max(len(group.members) for group in shown) > 1
    label = "test loss (median, band: all seeds)" if several else "test loss"
    axes.set(xlabel="epoch", ylabel=label, title=_title(run.config["task"], run.config["options"]) + clipped)
    epochs_and_log(axes)
    legend_below(figure, [axes])
    axes.grid(alpha=0.25)
    return save(figure, path) if path is not None else save_ours(figure, run.path / "losses.png")


def _title(task: str, options: dict[str, Any]) -> str:
    """The task with the option that makes it harder, and those that are not as by default."""
    kind = task_options(task)
    default = vars(kind())
    named = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in options.items()
        if name == difficulty_of(kind)[0] or default.get(name) != value
    ]
    return textwrap.fill(f"{task} ({', '.join(named)})", 80)


def draw_group(axes: Axes, epochs: np.ndarray, losses: np.ndarray, group: Group, style: Style | None = None) -> None:
    """Median and range of `losses` [epochs, seeds], where seeds that have diverged are NaN."""
    alive = ~np.isnan(losses).all(axis=1)
    style = style or style_of(group.name)
    count = f"{losses.shape[1]} seeds" if losses.shape[1] > 1 else "1 seed"
    values = losses[alive]
    axes.plot(epochs[alive], np.nanmedian(values, axis=1), **style.line(len(values)), label=f"{group.name} ({count})")
    low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
    axes.fill_between(epochs[alive], low, high, color=style.colour, alpha=0.18, linewidth=0)

"""What a study found: a table in Markdown and JSON, and one figure with a panel for each difficulty."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.studies.comparisons import (
    AGAINST,
    Row,
    conclusions,
    grouped,
    markdown,
    more_seeds_told,
    same_told,
    table,
)
from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.knobs import knob_panels, search_told, tuning_budgets
from benchmarks.studies.statistics import interquartile_mean, interval, profile
from benchmarks.studies.study import STUDY_FORMAT
from engine import SettingError
from training.errors import RunError
from training.files import write_ours
from training.gradients import gradient_named
from training.metrics import for_json
from training.optimisers import settings_to_file
from training.sources import passes
from training.style import (
    epochs_and_log,
    fits_log,
    legend_below,
    losses_upward,
    panel_figure,
    plain_log,
    plain_number,
    save,
    save_ours,
)
from training.variant import Variant
from training.viewing.palette import Style, styles_of

AXES = {
    "epochs": "epoch",
    "updates": "update",
    "steps": "simulator steps, forward and backward",
    "time": "seconds of one training",
}
SPREADS = ("interval", "std")


def write_report(
    out: Path | StudyDirectory, threshold: float | None, costs: dict[str, dict[str, Any]], against: str = AGAINST
) -> list[Path]:
    """Write report.md, report.json and the figures of a study; returns their paths. What is not ours there stays."""
    directory = StudyDirectory.at(out)
    rows, study, path = table(directory, threshold, costs, against), directory.config, directory.path
    told = {**study, "settings": settings_to_file(study["settings"])}
    plain = {"format": STUDY_FORMAT, "study": told, "threshold": threshold, "rows": [asdict(row) for row in rows]}
    plain["conclusions"] = said = said_of(directory, rows)
    written = [
        write_ours(path / "report.md", markdown(rows, study, threshold, said)),
        write_ours(path / "report.json", json.dumps(for_json(plain), indent=1) + "\n"),
    ]
    figures = [loss_panels(directory, axis, costs=costs) for axis in ("epochs", "time") if axis != "time" or costs]
    knobs = knob_panels(directory)
    figures += [] if knobs is None else [knobs]
    figures += [profile_panels(directory, threshold), *([memory_panels(directory, rows)] if costs else [])]
    return [*written, *figures, paper_panels(directory)]


def said_of(directory: StudyDirectory, rows: Sequence[Row]) -> list[str]:
    """What a study's rows say and cannot say, and what tuning and further seeds have to do with it, in sentences."""
    study, results = directory.config, directory.results
    tuned = search_told(study, results, directory.difficulty) or tuning_budgets(results, bool(study.get("tune_knobs")))
    return [*tuned, *conclusions(rows), *same_told(directory.reported), *more_seeds_told(study)]


def loss_panels(
    out: Path | StudyDirectory,
    axis: str = "epochs",
    spread: str = "interval",
    smooth: int = 1,
    costs: dict[str, dict[str, Any]] | None = None,
    path: Path | None = None,
) -> Path:
    """Test loss of every variant, one panel for each difficulty, on a log axis.

    Args:
        axis: "epochs", "updates", "steps" (of the simulator, those of its sweeps too) or "time" (at the measured cost).
        spread: "interval", interquartile mean with its 95% bootstrap interval, or "std", mean with one deviation.
        smooth: epochs of a moving average.
    """
    if axis not in AXES:
        raise SettingError(f"Expected an axis among {', '.join(AXES)}, got {axis!r}.")
    if spread not in SPREADS:
        raise SettingError(f"Expected a spread among {', '.join(SPREADS)}, got {spread!r}.")
    directory = StudyDirectory.at(out)
    groups = grouped(directory.reported)
    difficulties = list(dict.fromkeys(key[0] for key in groups))
    styles = styles_of(Variant(letter, clipping).short for _, letter, clipping in groups)
    shown = "interquartile mean, 95%" if spread == "interval" else "mean and deviation"
    figure, panels = panel_figure(len(difficulties), _averaged(f"test loss ({shown})", smooth))
    for axes, difficulty in zip(panels, difficulties, strict=True):
        for (of, letter, clipping), group in groups.items():
            if of == difficulty:
                scale = _per_epoch(axis, directory.config, group[0], (costs or {}).get(str(difficulty), {}).get(letter))
                variant = Variant(letter, clipping).short
                _draw(axes, group, variant, styles[variant], scale, spread, smooth)
        _finish(axes, f"{directory.difficulty} {difficulty}", AXES[axis])
        axes.grid(alpha=0.25)
    legend_below(figure, panels)
    return save(figure, path) if path is not None else save_ours(figure, directory.path / f"losses-{axis}.png")


def profile_panels(out: Path | StudyDirectory, threshold: float | None = None, path: Path | None = None) -> Path:
    """Performance profiles: the share of seeds whose final loss is at most τ, against τ, one panel a difficulty."""
    directory = StudyDirectory.at(out)
    groups = grouped(directory.reported)
    difficulties = list(dict.fromkeys(key[0] for key in groups))
    styles = styles_of(Variant(letter, clipping).short for _, letter, clipping in groups)
    figure, panels = panel_figure(len(difficulties), "share of seeds at or below τ")
    for axes, difficulty in zip(panels, difficulties, strict=True):
        here = {key: [one.final_loss for one in group] for key, group in groups.items() if key[0] == difficulty}
        known, logarithmic = _finite(here.values())
        at = _places(known, logarithmic)
        for (_, letter, clipping), losses in here.items():
            name = Variant(letter, clipping).short
            axes.plot(at, profile(losses, at), **styles[name].line(len(at)), label=name)
        if threshold is not None and len(known):
            axes.axvline(threshold, color="0.5", linewidth=0.8)
        axes.set(title=f"{directory.difficulty} {difficulty}", xlabel="final loss τ", ylim=(-0.03, 1.03))
        if logarithmic:
            axes.set_xscale("log")
            plain_log(axes.xaxis)
        axes.grid(alpha=0.25)
    legend_below(figure, panels)
    return save(figure, path) if path is not None else save_ours(figure, directory.path / "profiles.png")


def _finite(finals: Iterable[Sequence[float]]) -> tuple[np.ndarray, bool]:
    """(all finite losses, in order; whether they belong on a log axis), of which those at 0 then are left out."""
    known = np.sort([loss for losses in finals for loss in losses if math.isfinite(loss)])
    logarithmic = fits_log(known) or not len(known)
    return (known[known > 0] if logarithmic else known), logarithmic


def _places(known: np.ndarray, logarithmic: bool) -> np.ndarray:
    """Losses from below the lowest to above the highest, at which shares are counted."""
    if not len(known):
        return np.ones(1)
    if logarithmic:
        return np.geomspace(0.9 * known[0], 1.1 * known[-1], 200)
    margin = 0.1 * max(abs(known[0]), abs(known[-1]), 1e-9)
    return np.linspace(known[0] - margin, known[-1] + margin, 200)


def memory_panels(out: Path | StudyDirectory, rows: Sequence[Row], path: Path | None = None) -> Path:
    """Final loss with its interval against the planned memory of one training, one panel for each difficulty."""
    directory = StudyDirectory.at(out)
    difficulties = list(dict.fromkeys(row.difficulty for row in rows))
    styles = styles_of(row.name for row in rows)
    figure, panels = panel_figure(len(difficulties), "final test loss (interquartile mean, 95%)")
    for axes, difficulty in zip(panels, difficulties, strict=True):
        for row in rows:
            if row.difficulty != difficulty or row.memory_bytes is None or not math.isfinite(row.loss_high):
                continue
            spread = [[row.loss - row.loss_low], [row.loss_high - row.loss]]
            style = styles[row.name]
            axes.errorbar(row.memory_bytes / 2**20, row.loss, spread, color=style.colour, fmt="o", label=row.name)
        axes.set(title=f"{directory.difficulty} {difficulty}", xlabel="planned memory, MiB")
        losses_upward(axes)
        axes.grid(alpha=0.25)
    legend_below(figure, panels)
    return save(figure, path) if path is not None else save_ours(figure, directory.path / "losses-memory.png")


def paper_panels(out: Path | StudyDirectory, smooth: int = 30) -> Path:
    """As in the paper: every training a thin line in its gradient's style, the mean of the last `smooth` epochs."""
    directory = StudyDirectory.at(out)
    groups = grouped(directory.reported)
    styles = styles_of(Variant(letter, clipping).short for _, letter, clipping in groups)
    difficulties = list(dict.fromkeys(key[0] for key in groups))
    figure, panels = panel_figure(len(difficulties), _averaged("test loss of each seed", smooth))
    for axes, difficulty in zip(panels, difficulties, strict=True):
        for (of, letter, clipping), group in groups.items():
            variant = Variant(letter, clipping).short
            for index, result in enumerate(group if of == difficulty else ()):
                losses = _smoothed(_losses([result]), smooth)[:, 0]
                line = styles[variant].line(len(losses), 0.8)
                axes.plot(np.arange(1, len(losses) + 1), losses, **line, label="" if index else variant)
        _finish(axes, f"{directory.difficulty} {difficulty}", "epoch")
    legend_below(figure, panels)
    return save_ours(figure, directory.path / "losses-paper.png")


def _draw(
    axes: Axes,
    group: list[Result],
    variant: str,
    style: Style,
    scale: float,
    spread: str,
    smooth: int,
) -> None:
    losses = _smoothed(_losses(group), smooth)
    x = np.arange(1, len(losses) + 1) * scale
    if spread == "interval":
        filled = np.where(np.isnan(losses), np.inf, losses)
        middle, (low, high) = interquartile_mean(filled, axis=1), interval(filled, axis=1)
    else:
        alive = ~np.isnan(losses).all(axis=1)
        x, losses = x[alive], losses[alive]
        middle, deviation = np.nanmean(losses, axis=1), np.nanstd(losses, axis=1)
        least = np.where(middle > 0, middle * 1e-2, -np.inf)  # a band on a log axis has a lower end
        low, high = np.maximum(middle - deviation, least), middle + deviation
    finite = np.isfinite(middle)
    axes.plot(x[finite], middle[finite], **style.line(int(finite.sum())), label=variant)
    if not finite.any():
        return
    top = np.where(np.isfinite(high), high, np.nanmax(np.where(np.isfinite(losses), losses, np.nan)))
    axes.fill_between(x[finite], low[finite], top[finite], color=style.colour, alpha=0.15, linewidth=0)


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set(title=title, xlabel=label)
    epochs_and_log(axes)
    axes.xaxis.set_major_formatter(plain_number)


def _averaged(label: str, epochs: int) -> str:
    """The label of an axis of moving averages says so."""
    return label if epochs == 1 else f"{label},\nmean over {epochs} epochs"


def _per_epoch(axis: str, study: dict[str, Any], result: Result, cost: dict[str, Any] | None) -> float:
    settings = study["settings"]
    updates = settings["train_samples"] // settings["batch_size"]
    if axis == "updates":
        return float(updates)
    if axis == "steps":
        passed = passes(gradient_named(result.variant.gradient).estimator)
        return float(updates * passed * settings["batch_size"] * result.options["horizon"])
    if axis == "time":
        if cost is None:
            raise RunError("Expected measured costs of every gradient for an axis of time, got none.")
        return updates * cost["ms"] / 1e3
    return 1.0


def _losses(group: list[Result]) -> np.ndarray:
    """[epochs, seeds], NaN from where a training diverged."""
    return np.array([result.test_loss for result in group], dtype=float).T


def _smoothed(losses: np.ndarray, epochs: int) -> np.ndarray:
    """Moving average over the last `epochs` epochs."""
    before = np.concatenate([np.zeros((epochs - 1, *losses.shape[1:])), losses])
    counts = np.minimum(np.arange(1, len(losses) + 1), epochs)
    # Each window by itself: from differences of running sums a single large loss would never leave.
    return np.lib.stride_tricks.sliding_window_view(before, epochs, axis=0).sum(-1) / counts[:, None]

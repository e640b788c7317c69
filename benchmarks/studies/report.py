"""What a study found: a table in Markdown and JSON, and one figure with a panel for each difficulty."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.statistics import interquartile_mean, interval, probability_better, success_interval
from benchmarks.studies.study import STUDY_FORMAT
from engine import FULL, SettingError
from training.errors import RunError
from training.files import write_ours
from training.gradients import rank_of, text_of
from training.optimisers import optimiser_named, settings_to_file
from training.style import (
    epochs_and_log,
    legend_below,
    panel_figure,
    plain_number,
    save,
    save_ours,
)
from training.variant import Variant
from training.viewing.palette import Style, styles_of

AXES = {"epochs": "epoch", "steps": "simulator steps", "time": "seconds of one training"}
SPREADS = ("interval", "std")
_FULL = text_of(FULL)


@dataclass(frozen=True)
class Row:
    """One variant at one difficulty, over its seeds.

    Losses are interquartile means of final test losses with a 95% bootstrap interval; a training that diverged counts
    as an infinite loss, and as no success. `better_than_full` is the share of paired seeds on which the variant ends
    below R with the same clipping.
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
    better_than_full: float | None
    update_ms: float | None
    cost_of_full: float | None
    memory_bytes: int | None

    @property
    def name(self) -> str:
        return Variant(self.gradient, self.clipping).short


def table(out: Path | StudyDirectory, threshold: float | None, costs: dict[str, dict[str, Any]]) -> list[Row]:
    """One row for each difficulty and variant; `costs` as `measure_costs` finds them, by difficulty and gradient."""
    groups, rows = _grouped(StudyDirectory.at(out).reported), []
    for key, group in groups.items():
        difficulty, letter, clipping = key
        losses = [result.final_loss for result in group]
        low, high = interval(losses)
        wins = sum(loss < threshold for loss in losses) if threshold is not None else None
        rate = None if wins is None else success_interval(wins, len(losses))
        full = {result.label.seed: result.final_loss for result in groups.get((difficulty, _FULL, clipping), [])}
        pairs = [(result.final_loss, full[result.label.seed]) for result in group if result.label.seed in full]
        cost = costs.get(str(difficulty), {})
        mine, cost_of_full = cost.get(letter), cost.get(_FULL)
        rows.append(
            Row(
                difficulty,
                letter,
                clipping,
                group[0].variant.learning_rate,
                len(losses),
                float(interquartile_mean(losses)),
                float(low),
                float(high),
                None if wins is None else wins / len(losses),
                rate[0] if rate else None,
                rate[1] if rate else None,
                sum(math.isinf(loss) for loss in losses) / len(losses),
                probability_better(*zip(*pairs, strict=True)) if pairs and letter != _FULL else None,
                mine["ms"] if mine else None,
                mine["ms"] / cost_of_full["ms"] if mine and cost_of_full else None,
                mine["bytes"] if mine else None,
            )
        )
    return rows


def write_report(out: Path | StudyDirectory, threshold: float | None, costs: dict[str, dict[str, Any]]) -> list[Path]:
    """Write report.md, report.json and the figures of a study; returns their paths. What is not ours there stays."""
    directory = StudyDirectory.at(out)
    rows, study, path = table(directory, threshold, costs), directory.config, directory.path
    told = {**study, "settings": settings_to_file(study["settings"])}
    plain = {"format": STUDY_FORMAT, "study": told, "threshold": threshold, "rows": [asdict(row) for row in rows]}
    written = [
        write_ours(path / "report.md", _markdown(rows, study, threshold)),
        write_ours(path / "report.json", json.dumps(_finite(plain), indent=1) + "\n"),
    ]
    figures = [loss_panels(directory, axis, costs=costs) for axis in ("epochs", "time") if axis != "time" or costs]
    return [*written, *figures, paper_panels(directory)]


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
        axis: "epochs", "steps" (of the simulator, forward) or "time" (epochs at the measured cost of an update).
        spread: "interval", interquartile mean with its 95% bootstrap interval, or "std", mean with one deviation.
        smooth: epochs of a moving average.
    """
    if axis not in AXES:
        raise SettingError(f"Expected an axis among {', '.join(AXES)}, got {axis!r}.")
    if spread not in SPREADS:
        raise SettingError(f"Expected a spread among {', '.join(SPREADS)}, got {spread!r}.")
    directory = StudyDirectory.at(out)
    groups = _grouped(directory.reported)
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


def paper_panels(out: Path | StudyDirectory, smooth: int = 30) -> Path:
    """As in the paper: every training a thin line in its gradient's style, the mean of the last `smooth` epochs."""
    directory = StudyDirectory.at(out)
    groups = _grouped(directory.reported)
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
        low, high = np.maximum(middle - deviation, middle * 1e-2), middle + deviation
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
    if axis == "steps":
        return float(updates * settings["batch_size"] * result.options["horizon"])
    if axis == "time":
        if cost is None:
            raise RunError("Expected measured costs of every gradient for an axis of time, got none.")
        return updates * cost["ms"] / 1e3
    return 1.0


def _grouped(results: Sequence[Result]) -> dict[tuple[Any, str, str], list[Result]]:
    """Results by (difficulty, gradient, clipping), seeds in order, gradients in the order of their registration."""
    found: dict[tuple[Any, str, str], list[Result]] = {}
    for result in sorted(results, key=lambda entry: entry.label.seed):
        found.setdefault((result.difficulty, result.variant.gradient, result.variant.clipping), []).append(result)
    order = list(dict.fromkeys(result.difficulty for result in results))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), rank_of(item[0][1]))))


def _losses(group: list[Result]) -> np.ndarray:
    """[epochs, seeds], NaN from where a training diverged."""
    return np.array([result.test_loss for result in group], dtype=float).T


def _smoothed(losses: np.ndarray, epochs: int) -> np.ndarray:
    """Moving average over the last `epochs` epochs."""
    sums = np.cumsum(losses, axis=0)
    sums[epochs:] -= sums[:-epochs].copy()
    counts = np.minimum(np.arange(1, len(losses) + 1), epochs)
    return sums / counts[:, None]


def _markdown(rows: list[Row], study: dict[str, Any], threshold: float | None) -> str:
    success = f"below {threshold:g}" if threshold is not None else "success"
    head = ["difficulty", "variant", "rate", "seeds", "loss (IQM, 95%)", success, "diverged", "better than R",
            "ms an update", "cost / R", "memory"]  # fmt: skip
    lines = [f"# {study['task']}: {study['epochs']} epochs, {study['seeds']} paired seeds", "", _line(head)]
    lines.append(_line(["---"] * len(head)))
    for row in rows:
        rate = "" if row.success is None else f"{row.success:.0%} ({row.success_low:.0%} to {row.success_high:.0%})"
        lines.append(
            _line(
                [
                    str(row.difficulty),
                    row.name,
                    f"{row.learning_rate:g}",
                    str(row.seeds),
                    f"{row.loss:.3g} ({row.loss_low:.3g} to {row.loss_high:.3g})",
                    rate,
                    f"{row.diverged:.0%}",
                    "" if row.better_than_full is None else f"{row.better_than_full:.2f}",
                    "" if row.update_ms is None else f"{row.update_ms:.2f}",
                    "" if row.cost_of_full is None else f"{row.cost_of_full:.2f}",
                    "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.1f} MiB",
                ]
            )
        )
    note = (
        "Losses are interquartile means of the final test loss over seeds with a 95% bootstrap interval; a training "
        "that diverged counts as infinite loss and as no success. `better than R`: share of paired seeds on which the "
        "variant ends below R, ties counted half. Cost and memory: one training alone, the update's median and the "
        "planned buffers."
    )
    name = study["settings"]["optimiser"]
    note += f" Optimiser: {name}, {optimiser_named(name).description}."
    return "\n".join([*lines, "", note, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

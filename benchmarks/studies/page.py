"""`evenflow report`: one HTML page of a run or a study, with everything in it, that opens from disk with no network."""

import base64
import html
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.studies.comparisons import (
    AGAINST,
    Row,
    better,
    check_against,
    chooses_numbers,
    compared_with,
    seeds_done,
    significance,
    table,
)
from benchmarks.studies.costs import load_costs
from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.report import AXES, loss_panels, memory_panels, profile_panels, said_of
from engine import SettingError
from engine.norms import norm_of_array
from training import Experiment, RunDirectory, gradient_named, task_options
from training.curves import loss_figure
from training.errors import RunError
from training.estimators import of_sweeps
from training.files import is_ours, reason, write_ours, write_whole
from training.gradients import lettered, rank_of
from training.optimisers import settings_from_file, settings_to_file
from training.outputs import check_new_file
from training.style import legend_below, new_figure, plain_log, settle
from training.summary import groups, loss_text, summaries
from training.tasks import difficulty_of
from training.viewing import Show, Watched, member_of
from training.viewing.drawings import GuiCanvas
from training.viewing.palette import styles_of
from training.viewing.simulation import Simulation

_SAMPLES = 16
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60em; margin: 2em auto; padding: 0 1em; }
h1, h2 { font-weight: 600; line-height: 1.2; } h2 { margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em .25em 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
img { max-width: 100%; } figure { margin: 1em 0; } figcaption { color: #555; font-size: 90%; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 85%; }
"""


def precision_of(path: Path) -> str:
    """The precision that a run or study was trained in; RunError if there is neither."""
    of = StudyDirectory(path) if StudyDirectory.is_at(path) else RunDirectory.open(path)
    return of.runtime.precision


def write_page(path: Path, out: Path | None = None, against: str | None = None) -> Path:
    """Write the page of a run or study; needs a runtime of its precision.

    Args:
        path: of the run or study.
        out: the file; by default report.html in `path`, where it may replace an earlier one of ours.
        against: the gradient of a study's that the others are compared with, R by default.

    Raises:
        RunError: no run or study there, nothing finished in it, or a file of the reader's own in the way.
        SettingError: an `out` that is no .html, or where nothing can be written; `against` with a run, which compares
            nothing, or that the study has not trained.
    """
    if out is not None:
        check_new_file(out, (".html", ".htm"), "the report")
    target = out or path / "report.html"
    if os.path.lexists(target) and not is_ours(target):
        raise RunError(
            f"Expected {target} to be as Evenflow wrote it, got a file of your own or one that was changed; move it, "
            "or choose another place with --out."
        )
    is_study = StudyDirectory.is_at(path)
    if against is not None and not is_study:
        raise SettingError(f"Expected a study with --against, got the run {path}; leave it out.")
    parts = _study_parts(path, against) if is_study else _run_parts(path)
    if out is None:
        return write_ours(target, _page(*parts))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(target, _page(*parts))
    except OSError as error:
        raise RunError(
            f"Expected a report that can be written, got {target}: {reason(error)}; choose another --out."
        ) from error


def _run_parts(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """(title, sections) of a run."""
    run = RunDirectory.open(path)
    experiment = Experiment.from_config(run.config)
    records, labels = run.metrics(), experiment.labels()
    if not records:
        raise RunError(f"Expected a run with at least one epoch, got {path}, which has none; train it first.")
    losses = records[-1]["test_loss"]
    controllers = []
    for group in groups(labels):
        best = min(group.members, key=lambda member: _loss(losses[member]))
        controllers.append(replace(member_of(run, best), name=f"{group.name}, seed {labels[best].seed}"))
    success = controllers[0].task.success
    heads = ["gradient", "seeds", "median", "lowest", "highest", "diverged"]
    heads += [] if success is None else [f"below {success:g}"]
    rows = [
        [row.group.name, len(row.group.members), *map(loss_text, (row.median, row.lowest, row.highest)), row.diverged]
        + ([] if success is None else [row.solved])
        for row in summaries(labels, records[-1]["test_loss"], success)
    ]
    done = records[-1]["epoch"]  # runs of before totals were recorded may have more than they say
    epochs = f"{done} of {max(done, experiment.epochs)} epochs"
    return f"{experiment.task}: {path.name}", [
        (f"Test loss after {epochs}", _table(heads, rows)),
        *((head, draw(run)) for head, draw in RUN_PLOTS.items()),
        ("Last frames", _last_frames(controllers)),
        ("Adjoint profile", _adjoint_profile(controllers, experiment.gradients)),
        ("Configuration", _configuration(run.config)),
    ]


def _study_parts(path: Path, against: str | None) -> tuple[str, list[tuple[str, str]]]:
    """(title, sections) of a study; frames and adjoints are of those trainings whose runs are here."""
    study = StudyDirectory(path)
    config, results = study.config, study.reported
    if against is not None:
        reported = list(dict.fromkeys(result.variant.gradient for result in results))
        check_against(against, reported, chooses_numbers(config))
    kind = task_options(config["task"])
    costs = load_costs(path)
    name, success = difficulty_of(kind)[0], kind(**results[0].options).build().success
    found = table(study, success, costs, against or AGAINST)
    rows = [
        [row.difficulty, row.name, f"{row.learning_rate:g}", row.seeds, f"{row.loss:.3g}",
         f"{row.loss_low:.3g} to {row.loss_high:.3g}", f"{row.percentiles[2]:.3g}, {row.percentiles[4]:.3g}",
         "" if row.success is None else f"{row.success:.0%}", f"{row.diverged:.0%}", better(row), significance(row),
         "" if row.update_ms is None else f"{row.update_ms:.2f}"]
        for row in found
    ]  # fmt: skip
    heads = [name, "variant", "rate", "seeds", "loss (IQM)", "95%", "50%, 90% of runs", "success", "diverged",
             f"better than {compared_with(found)} (95%)", "p (Holm)", "ms/update"]  # fmt: skip
    told = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in said_of(study, found))
    controllers = _of_hardest(study)
    seen = (
        [
            ("Last frames", _last_frames(controllers)),
            ("Adjoint profile", _adjoint_profile(controllers, config["gradients"])),
        ]
        if controllers
        else [("Last frames and adjoint profile", "<p>The runs of these trainings are not here.</p>")]
    )
    return f"{config['task']}: {path.name}", [
        (f"Test loss over {seeds_done(found, config)} paired seeds", _table(heads, rows)),
        ("What that says, and what it cannot say", f"<ul>{told}</ul>"),
        *((head, draw(study)) for head, draw in STUDY_PLOTS.items()),
        *([("Memory", _study_memory(study, found))] if costs else []),
        *seen,
        ("Configuration", _configuration(config)),
    ]


def _configuration(config: dict[str, Any]) -> str:
    """A configuration as YAML, in which no Adam stands without saying which."""
    told = {**config, "settings": settings_to_file(settings_from_file(config["settings"]))}
    return f"<pre>{html.escape(yaml.safe_dump(told, sort_keys=False))}</pre>"


def _of_hardest(study: StudyDirectory) -> list[Watched]:
    """At the last difficulty of which runs are here, each variant's training with the lowest final loss."""
    here = [result for result in study.reported if study.has_run(result)]
    hardest = here[-1].difficulty if here else None
    found: dict[tuple[str, str], Result] = {}
    for result in (result for result in here if result.difficulty == hardest):
        key = (result.variant.gradient, result.variant.clipping)
        if key not in found or result.final_loss < found[key].final_loss:
            found[key] = result
    chosen = []
    for result in sorted(found.values(), key=lambda result: rank_of(result.variant.gradient)):
        member = member_of(study.run_of(result), result.member)
        of = f"{result.variant.short}, {study.difficulty} {hardest}, seed {result.label.seed}"
        chosen.append(replace(member, name=of))
    return chosen


def _last_frames(controllers: Sequence[Watched]) -> str:
    """Start, middle and end of the best controller of each variant, from one start."""
    found = []
    show, canvas = Show(controllers, seed=0), GuiCanvas("report", size=280)
    steps = (0, show.player.horizon // 2, show.player.horizon)
    show.stand(steps)
    for index, controller in enumerate(controllers):
        pictures = []
        for t in steps:
            show.player.position = float(t)
            canvas.clear()
            canvas.paint([show.scenes()[index]])
            pictures.append(canvas.image())
        caption = f"{controller.name}: first, middle and last state of a rollout from test seed 0, all to one scale."
        found.append(_figure(_png(np.concatenate(pictures, axis=1)), caption))
    return "".join(found)


def _adjoint_profile(controllers: Sequence[Watched], trained: Sequence[str]) -> str:
    """|λ_t| of what ships and was trained, along the last controller's rollouts: median and 5 to 95% over starts."""
    controller = controllers[-1]
    named = dict.fromkeys(gradient_named(text) for text in (*lettered(), *trained))
    gradients = [gradient for gradient in named if of_sweeps(gradient.estimator)]
    simulation = Simulation(controller, gradients)
    last = max(len(controller.checkpoints) - 1, 0)
    swept = [simulation.run(simulation.initial(seed), last).adjoints for seed in range(_SAMPLES)]
    figure, (axes,) = new_figure(6, 3.8)
    for text, style in styles_of(gradient.text for gradient in gradients).items():
        norms = np.stack([norm_of_array(one[text].reshape(len(one[text]), -1)) for one in swept])
        norms = np.where(norms > 0, norms, np.nan)
        known = np.isfinite(norms).any(0)
        if not known.any():  # a controller whose every rollout diverges
            continue
        steps = np.flatnonzero(known)
        low, middle, high = np.nanquantile(norms[:, known], (0.05, 0.5, 0.95), axis=0)
        axes.plot(steps, middle, **style.line(len(steps)), label=text)
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="step t", ylabel="size of the adjoint |λ|", yscale="log")
    plain_log(axes.yaxis)
    legend_below(figure, [axes])
    axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    settle(figure)
    figure.savefig(buffer, format="png")
    caption = (
        f"On the rollouts of {controller.name} from {_SAMPLES} starts: medians, and 5 to 95%. A gradient of several "
        "sweeps combines their adjoints: C is M's where its sign agrees with R's, else 0."
    )
    return _figure(buffer.getvalue(), caption)


def _run_curves(run: RunDirectory) -> str:
    labels = Experiment.from_config(run.config).labels()
    return drawn(lambda file: loss_figure(run, labels, file), "Median over seeds; bands from lowest to highest.")


def _study_curves(study: StudyDirectory) -> str:
    costs, figures = load_costs(study.path), []
    known = all(one.variant.gradient in costs.get(str(one.difficulty), {}) for one in study.reported)
    for axis, against in AXES.items():
        if axis != "time" or known:
            caption = f"Interquartile mean against {against}, with its 95% interval."
            draw = partial(loss_panels, study, axis, costs=costs)
            figures.append(drawn(lambda file, draw=draw: draw(path=file), caption))
    return "".join(figures)


def _study_memory(study: StudyDirectory, rows: Sequence[Row]) -> str:
    caption = "Interquartile mean of the final test loss, with its 95% interval, against planned memory."
    return drawn(lambda file: memory_panels(study, rows, file), caption)


def _study_profiles(study: StudyDirectory) -> str:
    caption = "Performance profiles: how many seeds end at most at a loss; a training that diverged never does."
    return drawn(lambda file: profile_panels(study, path=file), caption)


RUN_PLOTS: dict[str, Callable[[RunDirectory], str]] = {"Curves": _run_curves}
"""Plots on the page of a run, by the heading of their section: another is a function and a line here."""
STUDY_PLOTS: dict[str, Callable[[StudyDirectory], str]] = {
    "Curves": _study_curves,
    "Performance profiles": _study_profiles,
}
"""The same for the page of a study."""


def drawn(draw: Callable[[Path], Path], caption: str) -> str:
    """The figure that `draw` writes to a file, for a page."""
    with tempfile.TemporaryDirectory() as folder:
        return _figure(draw(Path(folder) / "figure.png").read_bytes(), caption)


def _figure(picture: bytes, caption: str) -> str:
    data = base64.b64encode(picture).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _png(picture: np.ndarray) -> bytes:
    import imageio.v2 as imageio

    buffer = io.BytesIO()
    imageio.imwrite(buffer, picture, format="png")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return buffer.getvalue()


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = lambda kind, values: "".join(f"<{kind}>{html.escape(str(value))}</{kind}>" for value in values)  # noqa: E731
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{body}</tbody></table>"


def _page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<section><h2>{html.escape(head)}</h2>{content}</section>" for head, content in sections)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def _loss(value: float | None) -> float:
    return math.inf if value is None else value

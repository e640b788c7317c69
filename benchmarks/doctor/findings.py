"""What a doctor found, for people and programs: one page of text, one figure, JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.doctor.advice import Advice
from benchmarks.doctor.examination import Examination
from training.files import write_whole
from training.metrics import for_json
from training.style import new_figure, plain_log, save
from training.viewing.palette import styles_of

_PATHS = {"both": "physics and policy", "physics": "physics alone", "policy": "policy alone"}


def show(found: Examination, advice: Sequence[Advice], console: Console) -> None:
    """Print one page."""
    console.print(
        f"{found.task}, {found.name}: {found.samples} starts, {found.horizon} steps, mean loss {found.loss:.3g}",
        highlight=False,
    )
    table = Table("path", "a step", "in all", "explodes at", "dies at", title="By how much an adjoint grows")
    for name, growth in found.growth.items():
        first, last = next(one[1] for one in growth.profile if not math.isnan(one[1])), growth.profile[-1][1]
        ratio = first / last if last > 0 else 0.0
        factor = "none passes" if growth.factor is None else f"{growth.factor:.4g}"
        table.add_row(_PATHS[name], factor, f"{ratio:.3g}", _step(growth.explodes_at), _step(growth.dies_at))
    console.print(table)
    names = list(found.norms)
    table = Table("", "size", *names[:-1], title="Gradients, and cosines of their pairs")
    for place, name in enumerate(names):
        cosines = [found.cosines.get(f"{other} {name}") for other in names[:place]]
        shown = ["" if cosine is None else f"{cosine:.3f}" for cosine in cosines]
        table.add_row(name, f"{found.norms[name]:.3g}", *shown, *[""] * (len(names) - 1 - len(shown)))
    console.print(table)
    console.print(
        f"M and R agree in sign on {found.agreeing:.1%} of the parameters; {found.policy_share:.1%} of the gradient "
        "comes by the policy's path.",
        highlight=False,
    )
    columns = ("horizon", "R", "M", f"score({found.sigma:g}, {found.copies})")
    table = Table(*columns, title="Variance of a start's gradient")
    for one in found.variances:
        score = "" if one.score is None else f"{one.score:.3g}"
        table.add_row(str(one.horizon), f"{one.full:.3g}", f"{one.physics:.3g}", score)
    console.print(table)
    if found.single is not None:
        lost = ", ".join(
            f"{name} {told['error']:.2g} with {told['wrong_signs']:.2%} wrong signs"
            for name, told in found.single.items()
        )
        console.print(f"float32 beside float64: {lost}.", highlight=False)
    for place, one in enumerate(advice):
        console.print(f"{'try' if place == 0 else 'or'} {one.gradient}: {one.why}.", highlight=False)


def write(found: Examination, advice: Sequence[Advice], out: Path) -> list[Path]:
    """Write doctor.json and doctor.png into a directory that has neither; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    told = {**asdict(found), "advice": [asdict(one) for one in advice]}
    text = json.dumps(for_json(told), indent=1) + "\n"
    return [write_whole(out / "doctor.json", text), _draw(found, out / "doctor.png")]


def _draw(found: Examination, path: Path) -> Path:
    """Adjoints by path against the step, and variances against the horizon."""
    figure, (left, right) = new_figure(8.5, 3.6, 2)
    styles = styles_of(_PATHS.values())
    for name, growth in found.growth.items():
        values = np.array(growth.profile)
        values = np.where(values > 0, values, np.nan)
        steps = np.flatnonzero(np.isfinite(values[:, 1]))
        if len(steps):
            low, middle, high = values[steps].T
            style = styles[_PATHS[name]]
            left.plot(steps, middle, **style.line(len(steps)), label=_PATHS[name])
            left.fill_between(steps, low, high, color=style.colour, alpha=0.15, linewidth=0)
    left.set(xlabel="step t", ylabel="size of a unit adjoint at the end", yscale="log")
    columns = {"R": "full", "M": "physics", "score": "score"}
    for name, style in styles_of(columns).items():
        points = [(one.horizon, getattr(one, columns[name])) for one in found.variances]
        known = [(x, y) for x, y in points if y is not None and math.isfinite(y) and y > 0]
        if known:
            right.plot(*zip(*known, strict=True), **style.line(len(known)), label=name)
    right.set(xlabel="horizon", ylabel="variance of one start's gradient", xscale="log", yscale="log")
    for axes in (left, right):
        plain_log(axes.yaxis)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return save(figure, path)


def _step(value: int | None) -> str:
    return "" if value is None else str(value)

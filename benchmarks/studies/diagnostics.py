"""Where a gradient explodes or dies: adjoints step by step, on weights that all variants share.

At a study's milestones (start, a tenth, a half and the end of training) the weights of one training of R, or of the
first gradient there is, are taken, its test states rolled out once, and every variant's sweep made over that rollout.
Variants that take more than whole sweeps of one rollout are left out.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.study import Study
from engine import FULL, PHYSICS_ONLY, AdjointRule, Rollout, SettingError
from engine.norms import norm
from training import Backpropagation, Gradient, SignAgreement, gradient_named
from training.estimators import combined, of_sweeps
from training.files import write_ours
from training.gradients import lettered, rank_of, text_of
from training.starts import built, starts_of
from training.style import legend_below, panel_figure, plain_log, save_ours
from training.viewing.palette import styles_of

_FULL, _PHYSICS = (text_of(rule) for rule in (FULL, PHYSICS_ONLY))
_COMBINED = text_of(SignAgreement(Backpropagation(PHYSICS_ONLY), Backpropagation(FULL)))
QUANTILES = (0.05, 0.5, 0.95)
_EXPLODED = 1e3


class MeasuredRule:
    """Another rule, step by step, that notes the sizes of the two paths' terms."""

    uses_physics = uses_policy = True

    def __init__(self, of: AdjointRule):
        self.of = of
        self.ratios: dict[int, float] = {}

    def __call__(self, direct, physics, policy, t):
        sizes = [norm(term.flatten(1)) for term in (policy, physics)]
        self.ratios[t] = float((sizes[0] / sizes[1].clamp_min(torch.finfo(direct.dtype).tiny)).median())
        return self.of(direct, physics if self.of.uses_physics else None, policy if self.of.uses_policy else None, t)


@dataclass(frozen=True)
class Diagnosis:
    """One milestone at one difficulty.

    Attributes:
        loss: mean test loss.
        gradient_norms: |g| of every variant.
        adjoint_norms: for each rule |λ_t|, quantiles over the samples at each step, [T+1][3].
        path_ratios: median over samples of |Kᵀμ_t| / |Aᵀλ_{t+1}| along R's sweep, by step.
        cosines: of every pair of variants' gradients.
        agreeing: share of parameters on which M and R agree in sign; kept: |C|² / |M|².
        exploded_at: for each rule the latest step before the end whose median |λ_t| is 1000 times that of λ_T, or None.
    """

    difficulty: Any
    epoch: int
    loss: float
    gradient_norms: dict[str, float]
    adjoint_norms: dict[str, list[list[float]]]
    path_ratios: list[float]
    cosines: dict[str, float]
    agreeing: float
    kept: float
    exploded_at: dict[str, int | None]


def diagnose(study: Study, out: Path, samples: int = 64) -> list[Diagnosis]:
    """Diagnose every difficulty that has a run here at every milestone whose weights are finite."""
    found = []
    directory = StudyDirectory(out)
    named = dict.fromkeys(gradient_named(text) for text in (*lettered(), *study.gradients))
    gradients = [gradient for gradient in named if of_sweeps(gradient.estimator)]
    for difficulty in study.difficulties:
        here = [one for one in directory.reported if one.difficulty == difficulty and directory.has_run(one)]
        if not here:
            continue
        chosen = min(here, key=lambda result: (rank_of(result.variant.gradient), result.label.seed))
        task = study.experiment(difficulty, (0,)).task_options.build()
        policy = built(task.policy, 1)
        rollout = Rollout(task.system, policy, task.horizon, samples, **task.parts)
        rollout.seed_noise(0)
        initial, parameters = starts_of(task, [chosen.label.seed], "test", samples)
        given = None if parameters is None else parameters[0]
        for epoch in study.milestones:
            directory.fill(policy, chosen, epoch)
            losses = rollout.forward(initial[0], task.objective, given)
            if losses is not None and torch.isfinite(losses).all():
                found.append(_diagnosis(difficulty, epoch, rollout, task.objective, gradients))
    return found


def write_diagnostics(found: list[Diagnosis], study: Study, out: Path) -> list[Path]:
    """Write diagnostics.json and a figure; returns their paths. Nothing is written where nothing was diagnosed."""
    if not found:
        return []
    text = json.dumps([asdict(entry) for entry in found], indent=1) + "\n"
    return [write_ours(out / "diagnostics.json", text), _draw(found, study, out / "adjoints.png")]


def rules_of(gradients: Iterable[Gradient]) -> dict[str, AdjointRule]:
    """All rules that these gradients sweep with, by their text."""
    return {_text(rule): rule for gradient in gradients for rule in gradient.estimator.rules}


def _text(rule: AdjointRule) -> str:
    """A rule's text, or what it looks like if nothing of its kind is registered."""
    try:
        return text_of(rule)
    except SettingError:
        return repr(rule)


def _diagnosis(difficulty: Any, epoch: int, rollout: Rollout, objective, variants: Sequence[Gradient]) -> Diagnosis:
    horizon, norms, measured, rules = rollout.horizon, {}, MeasuredRule(FULL), rules_of(variants)

    def note(rule, part, adjoints, cotangents) -> None:
        sizes = norm(adjoints.flatten(2))
        norms.setdefault(rule, torch.zeros(horizon + 1, sizes.shape[1], dtype=sizes.dtype))
        norms[rule][part.start : part.stop + 1] = sizes.cpu()

    result = rollout.backward([*rules.values(), measured], objective, inspect=note, physical=False)
    of_rules = {rule: result.parameters[rule].double() for rule in rules.values()}
    gradients = {variant.text: combined(variant.estimator, of_rules) for variant in variants}
    profiles = {
        text: torch.quantile(norms[rule].double(), torch.tensor(QUANTILES, dtype=torch.float64), dim=1).T
        for text, rule in rules.items()
    }
    texts = list(gradients)
    cosines = {
        f"{one} {other}": float((_scaled(gradients[one]) * _scaled(gradients[other])).sum())
        for index, one in enumerate(texts)
        for other in texts[index + 1 :]
    }
    physics, kept = gradients[_PHYSICS], gradients[_COMBINED]
    return Diagnosis(
        difficulty,
        epoch,
        float(result.losses.mean()),
        {text: float(norm(gradient)) for text, gradient in gradients.items()},
        {text: profile.tolist() for text, profile in profiles.items()},
        [measured.ratios[t] for t in range(horizon)],
        cosines,
        float((torch.sign(physics) == torch.sign(gradients[_FULL])).double().mean()),
        float(norm(kept) / norm(physics).clamp_min(torch.finfo(physics.dtype).tiny)) ** 2,
        {text: _exploded(profile[:, 1]) for text, profile in profiles.items()},
    )


def _scaled(gradient: torch.Tensor) -> torch.Tensor:
    """Rows [P, n] of length 1, whose products neither overflow nor vanish."""
    return gradient / norm(gradient, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)


def _exploded(medians: torch.Tensor) -> int | None:
    # Divided, since a thousand times the last may be beyond what there are numbers for.
    last = medians[-1].clamp_min(torch.finfo(medians.dtype).tiny)
    large = (medians / _EXPLODED > last).nonzero().flatten().tolist()
    return max(large, default=None)


def _draw(found: list[Diagnosis], study: Study, path: Path) -> Path:
    """|λ_t| against the step: a panel for each difficulty at the last milestone, a line for each rule."""
    last = {entry.difficulty: entry for entry in found}
    figure, panels = panel_figure(len(last), "size of the adjoint |λ|")
    trained = [gradient_named(text) for text in study.gradients]
    shown = rules_of(gradient for gradient in trained if of_sweeps(gradient.estimator))
    styles = styles_of(found[0].adjoint_norms)
    for axes, entry in zip(panels, last.values(), strict=True):
        for text, profile in entry.adjoint_norms.items():
            if text not in shown:
                continue
            values = np.where(np.array(profile) > 0, np.array(profile), math.nan)
            steps = np.flatnonzero(np.isfinite(values[:, 1]))
            low, middle, high = values[steps].T
            axes.plot(steps, middle, **styles[text].line(len(steps)), label=text)
            axes.fill_between(steps, low, high, color=styles[text].colour, alpha=0.15, linewidth=0)
        axes.set(title=f"{study.difficulty} {entry.difficulty}, epoch {entry.epoch}", xlabel="step t", yscale="log")
        axes.grid(alpha=0.25)
    for axes in panels:
        plain_log(axes.yaxis)
    legend_below(figure, panels)
    return save_ours(figure, path)

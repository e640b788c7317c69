"""What a rollout and its sweeps show: growth of the adjoint by path, agreement, variances, and what float32 loses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.apart import DONE, run_module
from benchmarks.doctor.patient import Patient, Probe
from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, AdjointRule, PerSample, Rollout
from engine.norms import norm
from training import Backpropagation, SignAgreement
from training.plugins import to_load_again
from training.scores import Copies, Score
from training.starts import built

LETTERS: dict[str, AdjointRule] = {"R": FULL, "M": PHYSICS_ONLY, "S": ONE_STEP, "N": POLICY_ONLY}
PATHS: dict[str, AdjointRule] = {"both": FULL, "physics": PHYSICS_ONLY, "policy": POLICY_ONLY}
FAR = 1e2
"""How many times larger or smaller an adjoint has exploded or died."""
QUANTILES = (0.05, 0.5, 0.95)
_COMBINED = SignAgreement(Backpropagation(PHYSICS_ONLY), Backpropagation(FULL))
_MOST_NUMBERS = 10**8  # of states of all copies, beyond which scores are not tried


@dataclass(frozen=True)
class Growth:
    """|λ_t| of a unit adjoint at the end that travels back by some paths alone.

    Samples that end early are counted from their own ends, as if all ended at T.

    Attributes:
        factor: by which it grows at each step, the median over samples of the slope of log |λ_t|; None where it is 0.
        profile: quantiles over samples at each step [T+1][3]; NaN at steps that fewer than half of them have.
        explodes_at, dies_at: the latest step at which its median has grown or shrunk a hundredfold, or None.
    """

    factor: float | None
    profile: list[list[float]]
    explodes_at: int | None
    dies_at: int | None


@dataclass(frozen=True)
class Variance:
    """Relative variance of one start's gradient, E|g - ḡ|² / |ḡ|², over a shorter horizon."""

    horizon: int
    full: float
    physics: float
    score: float | None


@dataclass(frozen=True)
class Examination:
    """What `evenflow doctor` writes as JSON.

    Attributes:
        task, name, horizon, samples: what was examined.
        step_time: of a step, in the system's unit, or None.
        loss: mean over the starts.
        final_adjoint: median over starts of R's |λ_t| at the latest step where it is not 0.
        growth: by path.
        norms: |g| of R, M, S, N and C; cosines: of their pairs.
        agreeing: share of parameters on which M and R agree in sign.
        policy_share: |g_R - g_M| / (|g_M| + |g_R - g_M|).
        variances: for some horizons up to the whole.
        copies, sigma: of the score estimates among them.
        single: for R and M the relative error of float32 and the share of its wrong signs; None where not found out.
    """

    task: str
    name: str
    horizon: int
    samples: int
    step_time: float | None
    loss: float
    final_adjoint: float
    growth: Mapping[str, Growth]
    norms: Mapping[str, float]
    cosines: Mapping[str, float]
    agreeing: float
    policy_share: float
    variances: list[Variance]
    copies: int
    sigma: float
    single: Mapping[str, Mapping[str, float]] | None


def examine(patient: Patient, copies: int, sigma: float, asked: Mapping[str, Any] | None) -> Examination:
    """Examine a patient in float64.

    Args:
        copies: of each start, for the score estimates; 0 for none.
        sigma: the noise on their controls.
        asked: how a process in float32 finds the same patient, or None to leave that out. It cannot where a policy that
            is built anew has constants, which may be others there.
    """
    if asked is not None and "run" not in asked and patient.policy.constants():
        asked = None
    task = patient.task
    gradients = patient.gradients(LETTERS)
    whole, physics = gradients["R"], gradients["M"]
    rows = {rule: gradients[name].unsqueeze(0) for name, rule in LETTERS.items()}
    gradients["C"] = _COMBINED.combine(rows)[0]
    norms = {name: float(norm(gradient)) for name, gradient in gradients.items()}
    beside = float(norm(whole - physics))
    names = list(gradients)
    cosines = {
        f"{one} {other}": _cosine(gradients[one], gradients[other])
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    }
    loss, final = _last_adjoint(patient)
    total = norms["M"] + beside
    return Examination(
        task.name, patient.name, task.horizon, patient.samples, task.system.step_time, loss, final, grown(patient),
        norms, cosines, float((torch.sign(whole) == torch.sign(physics)).double().mean()),
        beside / total if total > 0 else 0.0, variances(patient, copies, sigma), copies, sigma,
        None if asked is None else single_precision(gradients, asked),
    )  # fmt: skip


def grown(patient: Patient) -> dict[str, Growth]:
    """How a unit adjoint at the end grows by each path, and by both."""
    rollout, probe = patient.rollout(), Probe(patient.task.system.state_shape, patient.samples)
    sizes = _Sizes(rollout)
    patient.run(rollout)
    rollout.backward(list(PATHS.values()), probe, inspect=sizes.note, physical=False)
    return {name: _growth(sizes.of[rule]) for name, rule in PATHS.items()}


def variances(patient: Patient, copies: int, sigma: float) -> list[Variance]:
    """Of first and zeroth order, over an eighth, a quarter, a half and the whole of the horizon."""
    whole, found = patient.task.horizon, []
    for horizon in sorted({max(1, whole // part) for part in (8, 4, 2, 1)}):
        rollout = patient.rollout(horizon)
        patient.run(rollout)
        rules = [PerSample(FULL), PerSample(PHYSICS_ONLY)]
        of_rules = rollout.backward(rules, patient.task.objective, physical=False).parameters
        full, physics = (_relative(of_rules[rule][0]) for rule in rules)
        found.append(Variance(horizon, full, physics, _score_variance(patient, horizon, copies, sigma)))
    return found


def single_precision(gradients: Mapping[str, torch.Tensor], asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What R and M lose in float32, found out in a process of its own; None where that does not end well."""
    ended = run_module("benchmarks.doctor.worker", [json.dumps(asked), *to_load_again()], seconds=600)
    if ended.status != DONE:
        return None
    found = {}
    for name, values in ended.result.items():
        exact, single = gradients[name].double().cpu(), torch.tensor(values, dtype=torch.float64)
        size = norm(exact).clamp_min(torch.finfo(torch.float64).tiny)
        wrong = (torch.sign(exact) != torch.sign(single)).double().mean()
        found[name] = {"error": float(norm(single - exact) / size), "wrong_signs": float(wrong)}
    return found


def _score_variance(patient: Patient, horizon: int, copies: int, sigma: float) -> float | None:
    task, samples = patient.task, patient.samples
    numbers = samples * (copies + 1) * horizon * patient.initial[0].numel()
    if not copies or numbers > _MOST_NUMBERS:
        return None
    policy = built(task.policy, samples)
    policy.theta.data.copy_(patient.policy.theta.data.expand(samples, -1))  # every start a member, to tell them apart
    policy.take_constants(patient.policy.constants())
    score = Copies(replace(task, horizon=horizon), policy, Score(sigma, copies), 1)
    if task.noise is not None:
        score.rollout.seed_noise(list(range(samples)), 0, each=score.rows)
    shape = (samples, copies // 2, horizon, *task.system.control_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(patient.initial)
    return _relative(score.gradients(patient.initial, noise, patient.parameters))


def _last_adjoint(patient: Patient) -> tuple[float, float]:
    """(mean loss, median over starts of the latest |λ_t| of R's that is not 0)."""
    rollout = patient.rollout()
    losses, sizes = patient.run(rollout), _Sizes(rollout)
    rollout.backward([FULL], patient.task.objective, inspect=sizes.note, physical=False)
    found = sizes.of[FULL]
    last = found[_ends(found), np.arange(found.shape[1])]
    return float(losses.mean()), float(np.median(last))


class _Sizes:
    """|λ_t| [T+1, B] `of` each rule, as a sweep shows them."""

    def __init__(self, rollout: Rollout):
        self.of: dict[AdjointRule, np.ndarray] = {}
        self._steps = rollout.horizon + 1

    def note(self, rule, part, adjoints, cotangents) -> None:
        found = norm(adjoints.flatten(2)).double().cpu().numpy()
        self.of.setdefault(rule, np.zeros((self._steps, found.shape[1])))[part.start : part.stop + 1] = found


def _ends(sizes: np.ndarray) -> np.ndarray:
    """The latest step [B] at which |λ_t| [T+1, B] is not 0; T where there is none."""
    some = sizes[::-1] != 0
    return len(sizes) - 1 - np.where(some.any(0), some.argmax(0), 0)


def _growth(sizes: np.ndarray) -> Growth:
    """Of |λ_t| [T+1, B]; the slope is that of a line through all steps."""
    steps, slopes = np.arange(len(sizes)), []
    for column in sizes.T:
        passing = (column > 0) & np.isfinite(column)
        if passing.sum() > 1:
            slopes.append(-np.polyfit(steps[passing], np.log(column[passing]), 1)[0])
    factor = float(np.exp(np.median(slopes))) if slopes else None
    apart = len(sizes) - 1 - _ends(sizes)  # from a sample's own end to the horizon
    known, profile = np.zeros(len(sizes), dtype=bool), np.full((len(sizes), len(QUANTILES)), np.nan)
    for step in steps:
        there = step >= apart
        known[step] = 2 * there.sum() >= len(there)
        if known[step]:
            profile[step] = np.quantile(sizes[step - apart[there], there], QUANTILES)
    middle = profile[:, 1] / max(profile[-1, 1], np.finfo(float).tiny)
    large, small = (np.flatnonzero(known & found) for found in (~(middle < FAR), middle <= 1.0 / FAR))
    ends = [int(where.max()) if len(where) else None for where in (large, small)]
    return Growth(factor, profile.tolist(), *ends)


def _relative(rows: torch.Tensor) -> float:
    """E|g - ḡ|² / |ḡ|² of rows [B, n]."""
    rows = rows.double()
    largest = rows.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    rows = rows / largest  # so that squares neither overflow nor vanish
    mean = rows.mean(0)
    spread, size = float((rows - mean).square().sum(1).mean()), float(mean.square().sum())
    return spread / size if size > 0 else float("inf")


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    tiny = torch.finfo(one.dtype).tiny
    return float((one / norm(one).clamp_min(tiny) * (other / norm(other).clamp_min(tiny))).sum())

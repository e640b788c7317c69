"""Gradients that look at single samples, or at the updates before: votes of samples, mixtures by variance, clipping.

Each member of an ensemble by itself, as in the combinations of whole sweeps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine import AdjointRule, PerSample, SettingError
from engine.checks import finite
from engine.contracts import described
from engine.norms import norm
from training.estimators import GradientEstimator, Whole, check_part, of_sweeps
from training.scores import Score


@dataclass(frozen=True)
class AndMask:
    """The mean gradient where samples agree in sign, |mean sign| ≥ threshold, divided by the share of such parameters.

    Every sample's gradient is pulled back by itself, so a sweep costs a pull-back for each sample of the batch.

    Source: Parascandolo et al., "Learning explanations that are hard to vary" (ICLR 2021).
    """

    of: AdjointRule
    threshold: float = 0.5

    def __post_init__(self):
        given = finite("AndMask with a threshold in [0, 1]", self.threshold, lambda number: 0 <= number <= 1)
        object.__setattr__(self, "threshold", given)

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return (PerSample(self.of),)

    def combine(self, gradients):
        samples = gradients[PerSample(self.of)]
        agreeing = (torch.sign(samples).mean(1).abs() >= self.threshold).to(samples.dtype)
        density = agreeing.mean(1, keepdim=True)
        return samples.mean(1) * agreeing / torch.where(density == 0, torch.ones_like(density), density)


@dataclass(frozen=True)
class EachSample:
    """The mean over the samples of what another makes of each sample's gradients by itself."""

    of: GradientEstimator

    def __post_init__(self):
        check_part(self.of)
        if not of_sweeps(self.of):
            raise SettingError(f"Expected a gradient of whole sweeps for each sample, got {described(self.of)}.")

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return tuple(PerSample(rule) for rule in self.of.rules)

    def combine(self, gradients):
        samples = {rule: gradients[PerSample(rule)] for rule in self.of.rules}
        shape = next(iter(samples.values())).shape
        return self.of.combine({rule: rows.flatten(0, 1) for rule, rows in samples.items()}).view(shape).mean(1)


@dataclass(frozen=True)
class ClipSamples:
    """The mean of the samples' gradients, each scaled to at most `ratio` times the median of their norms.

    So no start weighs much more than most do, however far its adjoint has grown; one that is not finite stays so. The
    median is of gradients that are finite and not zero, of an even number the lower one.
    """

    of: AdjointRule
    ratio: float = 1.0

    def __post_init__(self):
        given = finite("ClipSamples with a ratio above 0", self.ratio, lambda number: number > 0)
        object.__setattr__(self, "ratio", given)

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return (PerSample(self.of),)

    def combine(self, gradients):
        samples = gradients[PerSample(self.of)]
        sizes = norm(samples.flatten(0, 1)).view(samples.shape[:2])
        usual = torch.where(torch.isfinite(sizes) & (sizes > 0), sizes, math.nan)
        most = self.ratio * usual.nanmedian(1, keepdim=True).values
        scale = torch.where(sizes > most, most / sizes, torch.ones_like(sizes))
        return (samples * scale.unsqueeze(2)).mean(1)


@dataclass(frozen=True)
class Mix:
    """α a + (1 - α) z, α = v_z / (v_a + v_z), with v the variances over samples, summed over the parameters.

    Where a sweep exploded beyond finite numbers, z is left alone.

    Source: Suh et al., "Do Differentiable Simulators Give Better Policy Gradients?" (ICML 2022); Parmas et al., "PIPPS:
    Flexible Model-Based Policy Search Robust to the Curse of Chaos" (ICML 2018).
    """

    of: AdjointRule
    score: GradientEstimator

    def __post_init__(self):
        if not isinstance(self.score, Score):
            raise SettingError(
                f"Expected a score estimator to mix with, such as score(0.1, 16), got {described(self.score)}."
            )

    @property
    def rules(self) -> tuple[Any, ...]:
        return PerSample(self.of), PerSample(self.score)  # type: ignore[arg-type]

    def combine(self, gradients):
        swept, scored = (gradients[source] for source in self.rules)
        finite_sums = torch.isfinite(swept.mean(1)).all(1)  # those of finite numbers may not be
        usable = (finite_sums & torch.isfinite(swept).flatten(1).all(1)).view(-1, 1)
        swept = torch.where(usable.unsqueeze(2), swept, torch.zeros_like(swept))
        of_swept, of_scored = (rows.var(1, correction=0).sum(1, keepdim=True) for rows in (swept, scored))
        total = of_swept + of_scored
        weight = torch.where(total > 0, of_scored / total, torch.full_like(total, 0.5)) * usable
        return weight * swept.mean(1) + (1.0 - weight) * scored.mean(1)


@dataclass(frozen=True)
class AdaptiveClip(Whole):
    """A gradient g whose norm, where z = (|g| - μ)/s > 2.5, is clipped to μ + 2.5² s / z.

    μ and s² are the mean and variance of the norms of the first 25 updates, which are not clipped, and from then on
    running means with a memory of .97: μ ← .97 μ + .03 |g|, s² ← .97 s² + .03 (|g| - μ)², with |g| as clipped.

    Source: Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training" (2025).
    """

    def memory(self, members: int, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is known before the first update: nothing, of no updates."""
        zero = torch.zeros(members, 1, dtype=torch.float64, device=like.device)
        return {"updates": zero, "mean": zero.clone(), "variance": zero.clone()}

    def remember(self, gradient: torch.Tensor, memory: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """g [P, n] as clipped; `memory` is brought up to date in place."""
        updates, mean, variance = memory["updates"], memory["mean"], memory["variance"]
        size = norm(gradient, keepdim=True).double()
        above = size - mean
        clipped = (updates >= _WARM_UP) & (above > _SPREADS * variance.sqrt())
        kept = torch.where(clipped, mean + _SPREADS**2 * variance / above, size)
        share = torch.where(updates < _WARM_UP, 1.0 / (updates + 1.0), torch.full_like(mean, 1.0 - _MEMORY))
        before = mean.clone()
        mean.add_(share * (kept - mean))
        beside = torch.where(updates < _WARM_UP, before, mean)
        variance.add_(share * ((kept - mean) * (kept - beside) - variance))
        updates.add_(1.0)
        return torch.where(clipped, gradient * (kept / size).to(gradient.dtype), gradient)


_WARM_UP, _SPREADS, _MEMORY = 25, 2.5, 0.97

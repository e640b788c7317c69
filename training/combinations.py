"""Gradients made of whole sweeps, beside the sign agreement: directions added, projected, masked; steps masked.

With a, b the mini-batch mean gradients of the parts, â = a/|a|, and every member of an ensemble by itself. A part that
is exactly 0 leaves the other as it is, unless its size is asked for; a component that is not finite makes the result
not finite, or is left out by a mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from engine import AdjointRule, SettingError
from engine.checks import whole
from training.estimators import GradientEstimator, Whole, check_part


class _Combination:
    """Refuses parts that are no whole gradients by themselves."""

    def __post_init__(self):
        for entry in fields(self):  # pyright: ignore[reportArgumentType]
            if entry.type is GradientEstimator:
                check_part(getattr(self, entry.name))


@dataclass(frozen=True)
class _Pair(_Combination):
    """Two estimators over the same rollout."""

    one: GradientEstimator
    other: GradientEstimator

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return tuple(dict.fromkeys((*self.other.rules, *self.one.rules)))

    def pair(self, gradients: Mapping[AdjointRule, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one.combine(gradients), self.other.combine(gradients)


@dataclass(frozen=True)
class Unit(_Combination):
    """â: the direction of a gradient at length 1."""

    of: GradientEstimator

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return self.of.rules

    def combine(self, gradients):
        return _direction(self.of.combine(gradients))


@dataclass(frozen=True)
class Bisect(_Pair):
    """a + b |a|/|b|: both at the size of the first, so that neither drowns the other; it bisects their angle."""

    def combine(self, gradients):
        one, other = self.pair(gradients)
        return one + _direction(other) * _length(one)


@dataclass(frozen=True)
class BisectSmaller(_Pair):
    """(â + b̂) min(|a|, |b|): the bisector at the size of the smaller part, 0 where either is.

    Neither a nor b ascends along it: a·g = |a| min(|a|, |b|) (1 + â·b̂), and so for b.
    """

    def combine(self, gradients):
        one, other = self.pair(gradients)
        return (_direction(one) + _direction(other)) * torch.minimum(_length(one), _length(other))


@dataclass(frozen=True)
class BisectUnit(_Pair):
    """â + b̂: the directions alone."""

    def combine(self, gradients):
        one, other = self.pair(gradients)
        return _direction(one) + _direction(other)


@dataclass(frozen=True)
class ConflictFree(_Pair):
    """(a·d + b·d) d with d the direction of â + b̂: along both, at the sum of their lengths there.

    Source: Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks" (ICLR
    2025), for two gradients.
    """

    def combine(self, gradients):
        one, other = self.pair(gradients)
        along = _direction(_direction(one) + _direction(other))
        return along * _dot(one + other, along)


@dataclass(frozen=True)
class ProjectConflicts(_Pair):
    """Each part without its component against the other, added: a - min(a·b, 0) b/|b|² + b - min(a·b, 0) a/|a|².

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning" (NeurIPS 2020), for two gradients.
    """

    def combine(self, gradients):
        one, other = self.pair(gradients)
        of_one, of_other = _direction(one), _direction(other)
        return one - of_other * _dot(one, of_other).clamp(max=0.0) + other - of_one * _dot(other, of_one).clamp(max=0.0)


@dataclass(frozen=True)
class WhereSignsAgree(_Pair):
    """A gradient where two others, `one` and `other`, agree in sign, else 0; signs of 0 agree with nothing but 0."""

    of: GradientEstimator

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return tuple(dict.fromkeys((*super().rules, *self.of.rules)))

    def combine(self, gradients):
        one, other = self.pair(gradients)
        kept = self.of.combine(gradients)
        return torch.where(torch.sign(one) == torch.sign(other), kept, torch.zeros_like(kept))


@dataclass(frozen=True)
class MaskRandom(_Combination):
    """A gradient of which as many components are kept as `like` has that are not 0, but which ones is chance.

    The control for masks: what a mask does by its density alone. Chance is drawn from the bits of the gradient and
    `seed`, so that a resumed training draws the same. Beside other members a gradient may differ in its last bits, and
    the mask is then another.

    Args:
        of: whose components are kept.
        like: whose density is taken.
        divided: 1 to divide what is kept by the density, so that its mean stays; else 0.
        seed: another mask for the same gradient.
    """

    of: GradientEstimator
    like: GradientEstimator
    divided: int = 0
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.divided not in (0, 1):
            raise SettingError(f"Expected a random mask divided by its density (1) or not (0), got {self.divided}.")
        object.__setattr__(self, "seed", whole("a seed of a random mask of at least 0", self.seed, least=0))

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return tuple(dict.fromkeys((*self.like.rules, *self.of.rules)))

    def combine(self, gradients):
        gradient, density = self.of.combine(gradients), (self.like.combine(gradients) != 0).double().mean(1)
        kept = torch.zeros_like(gradient)
        for row, share, target in zip(gradient, density.tolist(), kept, strict=True):
            bits = row.cpu().view(torch.int32 if row.dtype == torch.float32 else torch.int64)
            draw = torch.Generator().manual_seed((int(bits.sum(dtype=torch.int64)) ^ self.seed * 0x9E3779B9) % 2**63)
            mask = torch.rand(len(row), generator=draw, dtype=torch.float64) < share
            weight = 1.0 / share if self.divided and share > 0 else 1.0
            target.copy_(torch.where(mask.to(row.device), row * weight, torch.zeros_like(row)))
        return kept


@dataclass(frozen=True)
class Cautious(Whole):
    """A gradient g whose optimiser's step u goes only where it descends: u ⊙ 1[u g > 0] / max(mean of the mask, 1e-3).

    The mean is over the components with u ≠ 0: others, as of layers before one that starts at zero or of parameters
    that are not trained, would make the first steps many times longer.

    Source: Liang et al., "Cautious Optimizers: Improving Training with One Line of Code" (2024), which takes the mean
    over each layer by itself.
    """

    def adjust_step(self, displacement: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """-u [P, n] masked, from -u and g, of which the optimiser made it; each member by itself."""
        sign = torch.sign(displacement)
        descends = (sign * torch.sign(gradient) < 0).to(displacement.dtype)
        density = descends.sum(1, keepdim=True) / sign.abs().sum(1, keepdim=True).clamp_min(1.0)
        return displacement * descends / density.clamp_min(1e-3)


def _length(rows: torch.Tensor) -> torch.Tensor:
    """|row| [P, 1] of rows [P, n]; squares of what is huge or tiny are not formed."""
    largest = rows.abs().amax(1, keepdim=True)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, torch.ones_like(largest))
    return (rows / scale).norm(dim=1, keepdim=True) * scale


def _direction(rows: torch.Tensor) -> torch.Tensor:
    """Rows [P, n] at length 1; rows of zeros stay zero."""
    largest = rows.abs().amax(1, keepdim=True)
    scaled = rows / torch.where(largest == 0, torch.ones_like(largest), largest)
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(length == 0, torch.ones_like(length), length)


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """one·other [P, 1] of rows [P, n]."""
    return (one * other).sum(1, keepdim=True)

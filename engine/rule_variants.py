"""More adjoint rules: paths weighed against each other, sizes limited, and decay and cuts by time or at random."""

import math
from dataclasses import dataclass, field, replace

import taichi as ti
import torch

from engine.checks import finite, whole
from engine.draws import uniform
from engine.errors import SettingError
from engine.norms import norm, vector_norm
from engine.rules import Decay, WrappedRule, placed


@dataclass(frozen=True)
class StepAgreement:
    """λ_t = ∂ℓ_t/∂x + Aᵀλ + Kᵀμ where sign(Kᵀμ) = sign(Aᵀλ), component by component; elsewhere without Kᵀμ."""

    uses_physics = uses_policy = True

    def __call__(self, direct, physics, policy, t):
        agreeing = torch.sign(physics) == torch.sign(policy)
        return direct + physics + torch.where(agreeing, policy, torch.zeros_like(policy))

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        agreeing = (physics > 0.0) & (policy > 0.0) | (physics < 0.0) & (policy < 0.0)
        return direct + physics + ti.select(agreeing, policy, 0.0)


@dataclass(frozen=True)
class KeepSize:
    """Each sample's λ_t along ∂ℓ_t/∂x + Aᵀλ + Kᵀμ, at the norm of ∂ℓ_t/∂x + Aᵀλ; 0 where the sum of all three is."""

    uses_physics = uses_policy = True

    def __call__(self, direct, physics, policy, t):
        short = (direct + physics).flatten(1)
        whole = short + policy.flatten(1)
        length = norm(whole, keepdim=True).clamp_min(torch.finfo(whole.dtype).tiny)
        return (whole / length * norm(short, keepdim=True)).view_as(direct)

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        short = direct + physics
        whole, length = short + policy, vector_norm(short + policy)
        if length > 0.0:
            whole = whole / length * vector_norm(short)
        return whole


@dataclass(frozen=True)
class ClipValue(WrappedRule):
    """Limit each component of λ_t to [-limit, limit]; a sample's λ_t that is not finite stays as it is."""

    limit: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        limit = finite("ClipValue with a finite limit above 0", self.limit, lambda number: number > 0)
        object.__setattr__(self, "limit", limit)

    def __call__(self, direct, physics, policy, t):
        adjoint = self.of(direct, physics, policy, t)
        known = torch.isfinite(adjoint.flatten(1)).all(1).view(-1, *[1] * (adjoint.dim() - 1))
        limit = min(self.limit, torch.finfo(adjoint.dtype).max)
        return torch.where(known, adjoint.clamp(-limit, limit), adjoint)

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        adjoint = self.inner(direct, physics, policy, t)
        # The norm itself may overflow. Of 0, and of what is not finite, this is NaN, which is not below.
        if (adjoint / abs(adjoint).max()).norm() < ti.math.inf:
            adjoint = ti.math.clamp(adjoint, -self.limit, self.limit)
        return adjoint


@dataclass(frozen=True)
class Balance:
    """λ_t = ∂ℓ_t/∂x + Aᵀλ + Kᵀμ with each sample's Kᵀμ scaled to a norm of at most `ratio` times that of Aᵀλ."""

    ratio: float = 1.0
    uses_physics = uses_policy = True

    def __post_init__(self):
        ratio = finite("Balance with a finite ratio of at least 0", self.ratio, lambda number: number >= 0)
        object.__setattr__(self, "ratio", ratio)

    def __call__(self, direct, physics, policy, t):
        most = self.ratio * norm(physics.flatten(1), keepdim=True)
        length = norm(policy.flatten(1), keepdim=True)
        scaled = policy.flatten(1) / length.clamp_min(torch.finfo(length.dtype).tiny) * torch.minimum(length, most)
        return direct + physics + torch.where(length > most, scaled, policy.flatten(1)).view_as(direct)

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        most, length = self.ratio * vector_norm(physics), vector_norm(policy)
        scaled = policy
        if length > most:
            scaled = policy / length * most
        return direct + physics + scaled


@dataclass(frozen=True)
class DecayRate(WrappedRule):
    """Multiply what arrives from later steps by e^{-α Δt} at every step, Δt being the time that a step takes."""

    rate: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        rate = finite("DecayRate with a finite rate of at least 0", self.rate, lambda number: number >= 0)
        object.__setattr__(self, "rate", rate)

    def placed(self, place):
        if place.step_time is None:
            raise SettingError("Expected a system with a time step dt for a decay by time, got one without; use Decay.")
        return Decay(placed(self.of, place), math.exp(-self.rate * place.step_time))


@dataclass(frozen=True)
class RandomCut(WrappedRule):
    """Cut what arrives from later steps with a probability p, else divide it by 1 - p: a path rule, in the mean.

    Draws are hashes of the sample's key, the step and `seed`: segments, ensembles and resumed trainings draw alike.

    Source: Tallec and Ollivier, "Unbiasing Truncated Backpropagation Through Time" (2017).
    """

    probability: float = 0.1
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        given = finite("RandomCut with a probability in [0, 1)", self.probability, lambda number: 0 <= number < 1)
        object.__setattr__(self, "probability", given)
        object.__setattr__(self, "seed", whole("RandomCut with a seed of at least 0", self.seed, least=0))

    def placed(self, place):
        return _PlacedCut(placed(self.of, place), self.probability, self.seed, place.keys())


@dataclass(frozen=True, eq=False)
class _PlacedCut(WrappedRule):
    """A random cut for samples with these keys."""

    probability: float = 0.1
    seed: int = 0
    keys: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def placed(self, place):
        return self

    def __call__(self, direct, physics, policy, t):
        passes = uniform(self.keys, t, self.seed) >= self.probability
        arriving = (self.of(direct, physics, policy, t) - direct) / (1.0 - self.probability)
        passes = passes.view(-1, *[1] * (direct.dim() - 1))
        return direct + torch.where(passes, arriving, torch.zeros_like(arriving))


@dataclass(frozen=True)
class EveryStep(WrappedRule):
    """A rule between the steps of the physics for which a control is held, and not only between the controller's.

    Where every control is held for h steps, λ on its way from step s of them to the one before becomes
    rule(direct = 0, physics = λ, policy = 0, t h + s), and the controller's own step counts as t h. Where h = 1 it is
    the rule itself. It stands outside other rules.
    """

    outermost = True

    def placed(self, place):
        if place.held == 1:
            return placed(self.of, place)
        time = None if place.step_time is None else place.step_time / place.held
        return _EveryStepOf(placed(self.of, replace(place, step_time=time)), place.held)


@dataclass(frozen=True)
class _EveryStepOf(WrappedRule):
    """A rule in its place, where controls are held for `held` steps."""

    held: int = 1

    def __call__(self, direct, physics, policy, t):
        return self.of(direct, physics, policy, t * self.held)

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return self.inner(direct, physics, policy, t * self.held)

    @ti.func
    def on_sample_between(self, adjoint, step):
        """As `between`, of one sample, before so many steps of the physics."""
        nothing = ti.Vector.zero(float, adjoint.n)
        return self.inner(nothing, adjoint, nothing, step)

    def between(self, adjoint: torch.Tensor, t: int, s: int) -> torch.Tensor:
        """What becomes of λ between the held steps s - 1 and s of step t."""
        nothing = torch.zeros_like(adjoint)
        physics = adjoint if self.of.uses_physics else None
        return self.of(nothing, physics, nothing if self.of.uses_policy else None, t * self.held + s)

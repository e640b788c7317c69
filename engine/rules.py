"""Adjoint rules: how the adjoint λ travels from one step to the one before.

For a rollout x_{t+1} = S(x_t, u_t), u_t = π(x_t) with loss Σ_t ℓ_t(x_t, u_t) + ℓ_T(x_T), and with A = ∂S/∂x,
B = ∂S/∂u, K = ∂π/∂x, a sweep starts at λ_T = ∂ℓ_T/∂x and for t = T-1, ..., 0 computes

    μ_t = ∂ℓ_t/∂u + Bᵀ λ_{t+1}
    λ_t = rule(direct = ∂ℓ_t/∂x, physics = Aᵀ λ_{t+1}, policy = Kᵀ μ_t, t)

A rule sees tensors [B, *state_shape], acts on each sample by itself, and returns a new tensor. The four rules of
Schnell and Thuerey, "Stabilizing Backpropagation Through Time to Learn Complex Physics" (ICLR 2024), are path rules.

That is all that a rule must be. One that besides says what it does to a single sample, as a `SampleRule`, or that is a
`PathSum`, lets systems sweep a whole segment in one launch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeGuard, runtime_checkable

import taichi as ti
import torch

from engine.checks import above_zero, finite, whole
from engine.contracts import check_rule, described
from engine.errors import AdjointError, SettingError
from engine.norms import limited, limited_vector

_ASKED = 4  # steps at which a rule is asked for a sum of paths


@runtime_checkable
class AdjointRule(Protocol):
    """What a sweep asks of a rule; `physics` and `policy` come as None where the rule does not use them."""

    @property
    def uses_physics(self) -> bool: ...

    @property
    def uses_policy(self) -> bool: ...

    def __call__(
        self, direct: torch.Tensor, physics: torch.Tensor | None, policy: torch.Tensor | None, t: int
    ) -> torch.Tensor: ...


@runtime_checkable
class PathSum(AdjointRule, Protocol):
    """A rule that is ∂ℓ_t/∂x + p Aᵀλ_{t+1} + k Kᵀμ_t."""

    @property
    def path_weights(self) -> tuple[float, float]:
        """(p, k)."""
        ...


@runtime_checkable
class SampleRule(AdjointRule, Protocol):
    """A rule that says itself on one sample, too, as a `@ti.func` method in a class of Python source."""

    def on_sample(self, direct: Any, physics: Any, policy: Any, t: Any) -> Any:
        """λ_t of one sample, from vectors in the order of `flatten`; that of a path that is not used holds anything.

        Compiled with the numbers of the rule as constants, once for each rule that is not equal to another.
        """
        ...


def sums_paths(rule: AdjointRule) -> TypeGuard[PathSum]:
    """Whether this is a `PathSum` whose call gives the sum that its weights say; where it does not, the call counts."""
    if type(rule) is PathRule:
        return True
    if not isinstance(rule, PathSum):
        return False
    terms = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direct, physics, policy = terms
    p, k = rule.path_weights
    physics, policy = (physics if rule.uses_physics else None), (policy if rule.uses_policy else None)
    try:
        found = [rule(direct.clone(), physics, policy, t) for t in range(_ASKED)]
    except Exception:  # of terms that it does not take; where it is swept it is told
        return False
    wanted = direct + (0.0 if physics is None else p * physics) + (0.0 if policy is None else k * policy)
    return all(torch.is_tensor(one) and one.shape == wanted.shape and torch.allclose(one, wanted) for one in found)


def numbers_of(rule: AdjointRule) -> dict[str, Any]:
    """The numbers and texts among a rule's attributes and those of the rules that it has."""
    values = getattr(rule, "__dict__", {})
    return {
        name: numbers_of(value) if isinstance(value, AdjointRule) else value
        for name, value in values.items()
        if isinstance(value, int | float | str | AdjointRule)
    }


def says_itself_on_a_sample(rule: AdjointRule) -> bool:
    """Whether this is a `SampleRule`, and so is every rule among its attributes, which it may call.

    What a class inherits of one sample says nothing of another `__call__` of its own.
    """
    parts = [value for value in getattr(rule, "__dict__", {}).values() if isinstance(value, AdjointRule)]
    if not isinstance(rule, SampleRule) or not all(map(says_itself_on_a_sample, parts)):
        return False
    kinds = type(rule).__mro__
    called = next(place for place, kind in enumerate(kinds) if "__call__" in vars(kind))
    return any("on_sample" in vars(kind) for kind in kinds[: called + 1])


@dataclass(frozen=True)
class Place:
    """Where a sweep is, for rules that depend on it: those have a method `placed(place)`, the rule that acts there.

    Attributes:
        step_time: how long a step is in the system's unit of time, or None.
        keys: makes a whole number below 2³² for each sample [B], other ones in every rollout.
        held: for how many steps of the physics, that the rollout does not show, each control is held.
    """

    step_time: float | None
    keys: Callable[[], torch.Tensor]
    held: int = 1


def placed(rule: AdjointRule, place: Place) -> AdjointRule:
    """The rule that acts there: itself, for most."""
    found = getattr(rule, "placed", None)
    return rule if found is None else found(place)


@dataclass(frozen=True)
class PathRule:
    """λ_t = ∂ℓ_t/∂x + p Aᵀλ_{t+1} + k Kᵀμ_t, with p = `physics_weight` and k = `policy_weight`."""

    physics_weight: float = 1.0
    policy_weight: float = 1.0

    def __post_init__(self):
        for name in ("physics_weight", "policy_weight"):
            value = finite(f"a PathRule with a finite {name}", getattr(self, name))
            object.__setattr__(self, name, value)

    @property
    def path_weights(self) -> tuple[float, float]:
        return self.physics_weight, self.policy_weight

    @property
    def uses_physics(self) -> bool:
        return self.physics_weight != 0.0

    @property
    def uses_policy(self) -> bool:
        return self.policy_weight != 0.0

    def __call__(self, direct, physics, policy, t):
        result = direct.clone()
        if physics is not None and self.uses_physics:
            result += physics if self.physics_weight == 1.0 else self.physics_weight * physics
        if policy is not None and self.uses_policy:
            result += policy if self.policy_weight == 1.0 else self.policy_weight * policy
        return result

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        result = direct
        if ti.static(self.uses_physics):
            result += self.physics_weight * physics
        if ti.static(self.uses_policy):
            result += self.policy_weight * policy
        return result


FULL = PathRule(1.0, 1.0)
"""Full backpropagation (the paper's R)."""
PHYSICS_ONLY = PathRule(1.0, 0.0)
"""The state entering the policy is stopped (M)."""
ONE_STEP = PathRule(0.0, 0.0)
"""The states entering policy and simulator are stopped (S)."""
POLICY_ONLY = PathRule(0.0, 1.0)
"""The state entering the simulator is stopped (N)."""


@dataclass(frozen=True)
class WrappedRule:
    """A rule that changes what another rule, `of`, receives or returns."""

    of: AdjointRule = FULL

    def __post_init__(self):
        try:
            check_rule(self.of)
        except AdjointError:
            name, others = type(self).__name__, [field.name for field in fields(self)[1:]]
            hint = f"; name the others, as in {name}({others[0]}=...)" if others else ""
            raise AdjointError(
                f"Expected a rule such as FULL as the first argument of {name}, got {described(self.of)}{hint}."
            ) from None
        if isinstance(self.of, PerSample):
            raise AdjointError(
                f"Expected PerSample around the other rules, got {type(self).__name__}(PerSample(...)); write "
                f"PerSample({type(self).__name__}(...))."
            )
        if getattr(self.of, "outermost", False):
            name, inner = type(self).__name__, type(self.of).__name__
            raise AdjointError(
                f"Expected {inner} around the other rules, and once, got {name}({inner}(...)); write "
                f"{inner}({'...' if name == inner else f'{name}(...)'})."
            )

    @property
    def uses_physics(self) -> bool:
        return self.of.uses_physics

    @property
    def uses_policy(self) -> bool:
        return self.of.uses_policy

    def placed(self, place: Place) -> AdjointRule:
        of = placed(self.of, place)
        return self if of is self.of else replace(self, of=of)

    def __call__(self, direct, physics, policy, t):
        raise SettingError(f"Expected {self} in a sweep, which places it, got it called by itself.")

    @ti.func
    def inner(self, direct, physics, policy, t):
        """What `of` makes of one sample."""
        return self.of.on_sample(direct, physics, policy, t)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ClipNorm(WrappedRule):
    """Scale each sample's λ_t to Euclidean norm at most `limit`; a λ_t that is not finite stays as it is."""

    limit: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "limit", above_zero("ClipNorm with a limit above 0", self.limit))

    def __call__(self, direct, physics, policy, t):
        adjoint = self.of(direct, physics, policy, t)
        return limited(adjoint.flatten(1), self.limit).view_as(adjoint)

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return limited_vector(self.inner(direct, physics, policy, t), self.limit)


@dataclass(frozen=True)
class Decay(WrappedRule):
    """Multiply what arrives from later steps by `factor` in [0, 1] at every step."""

    factor: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        factor = finite("Decay with a factor in [0, 1]", self.factor, lambda number: 0 <= number <= 1)
        object.__setattr__(self, "factor", factor)

    def __call__(self, direct, physics, policy, t):
        adjoint = self.of(direct, physics, policy, t)
        return direct + self.factor * (adjoint - direct)

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return direct + self.factor * (self.inner(direct, physics, policy, t) - direct)


@dataclass(frozen=True)
class Truncate(WrappedRule):
    """Cut the recursion before every step whose index is a multiple of `window`: λ_t = ∂ℓ_t/∂x there."""

    window: int = 10

    def __post_init__(self):
        super().__post_init__()
        window = whole("Truncate with a window of at least 1 step and below 2³¹", self.window, most=2**31 - 1)
        object.__setattr__(self, "window", window)

    def __call__(self, direct, physics, policy, t):
        return direct.clone() if t % self.window == 0 else self.of(direct, physics, policy, t)

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        adjoint = direct
        if t % self.window != 0:
            adjoint = self.inner(direct, physics, policy, t)
        return adjoint


@dataclass(frozen=True)
class PerSample(WrappedRule):
    """Another rule, whose parameter gradients are wanted for each sample by itself: [members, samples, parameters].

    A rollout's budget does not count them: give their bytes as `reserved`, and once more where it is cut into segments.
    """

    def __post_init__(self):
        """It may be of whatever makes gradients, such as scores, which are no rules of a sweep."""

    def placed(self, place):
        return placed(self.of, place)

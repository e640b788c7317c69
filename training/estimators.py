"""Gradient estimators: from adjoint sweeps over one rollout to the gradient that an optimiser sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from engine import FULL, AdjointRule, PerSample, SettingError
from engine.contracts import check_rule, check_tensor, described
from training.scores import Score
from training.short_horizons import Short


@runtime_checkable
class GradientEstimator(Protocol):
    """Asks for sweeps with some adjoint rules and combines their parameter gradients.

    One that also has a method `adjust_step(displacement, gradient)` replaces the optimiser's displacement [P, n], made
    from its gradient [P, n] at learning rate 1, by what that returns. One with `memory(members, like)`, tensors by name
    that checkpoints keep, for members with parameters `like` [members, parameters], and `remember(gradient, memory)`
    replaces what it combined by what that returns. Of one with `pair(gradients)`, the two gradients [P, n] that it
    combines, the agreement in sign is measured.
    """

    @property
    def rules(self) -> tuple[Any, ...]:
        """Adjoint rules, and scores, whose gradients come from rollouts of their own: instances of `Score`."""
        ...

    def combine(self, gradients: Mapping[Any, torch.Tensor]) -> torch.Tensor:
        """The estimate [members, parameters] from the mini-batch mean gradient [members, parameters] of each rule."""
        ...


def check_estimator(estimator: Any) -> None:
    """SettingError unless this is a gradient estimator; AdjointError if what it sweeps with are no rules."""
    if isinstance(estimator, type):
        hint = f"; make one: {estimator.__name__}(...)"
    elif callable(getattr(estimator, "combine", None)) and isinstance(getattr(estimator, "rules", None), tuple):
        for source in estimator.rules:
            if is_sweep(source):
                check_rule(source)
            elif not isinstance(source.of if isinstance(source, PerSample) else source, (Score, Short)):
                raise SettingError(
                    f"Expected adjoint rules or scores, got {described(source)}; combine its rules instead."
                )
        if not estimator.rules:
            raise SettingError(f"Expected an estimator with at least one rule, got {described(estimator)} with none.")
        return
    elif isinstance(estimator, str):
        hint = f"; write gradient_named({estimator!r}).estimator"
    elif hasattr(estimator, "estimator"):
        hint = "; give its .estimator"
    elif hasattr(estimator, "uses_physics"):
        hint = ", which is an adjoint rule; write Backpropagation(rule)"
    else:
        hint = "; it needs a tuple of rules and a method combine"
    raise SettingError(
        f"Expected a gradient estimator such as Backpropagation(FULL), got {described(estimator)}{hint}."
    )


def check_part(estimator: Any) -> None:
    """As `check_estimator`, for one that another combines: such a one cannot follow a whole training."""
    check_estimator(estimator)
    if isinstance(estimator, Short):
        raise SettingError(
            f"Expected a gradient to combine, got {described(estimator)}, which is of environments of its own; train "
            "with it alone."
        )
    for method, what in (("adjust_step", "acts on the optimiser's step"), ("memory", "remembers earlier updates")):
        if hasattr(estimator, method):
            raise SettingError(
                f"Expected a gradient to combine, got {described(estimator)}, which {what}; put it outside."
            )


def is_sweep(source: Any) -> bool:
    """Whether what an estimator asks for is an adjoint rule; else it is itself an estimator, made of other rollouts."""
    return not hasattr(source.of if isinstance(source, PerSample) else source, "combine")


def of_sweeps(estimator: GradientEstimator) -> bool:
    """Whether all that it asks for are adjoint rules over whole batches, whose adjoints can be combined too."""
    return all(is_sweep(source) and not isinstance(source, PerSample) for source in estimator.rules)


def combined(estimator: GradientEstimator, gradients: Mapping[AdjointRule, torch.Tensor]) -> torch.Tensor:
    """`estimator.combine(gradients)`, once it was seen to be [members, parameters] and to change no gradient."""
    versions = [gradient._version for gradient in gradients.values()]
    result = estimator.combine(gradients)
    given = next(iter(gradients.values()))
    shape = (given.shape[0], given.shape[-1])
    check_tensor(f"{described(estimator)} to combine gradients to one row for each member", result, shape, given)
    if versions != [gradient._version for gradient in gradients.values()]:
        raise SettingError(
            f"Expected an estimator that leaves the gradients as they are, got {described(estimator)}, which changes "
            "them in place; start from a clone."
        )
    return result


@dataclass(frozen=True)
class Backpropagation:
    """The gradient of one sweep."""

    rule: AdjointRule = FULL

    def __post_init__(self):
        check_rule(self.rule)

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return (self.rule,)

    def combine(self, gradients):
        return gradients[self.rule]


@dataclass(frozen=True)
class Whole:
    """A gradient as another has it, whose steps or updates are then looked at as wholes; base of such."""

    of: GradientEstimator

    def __post_init__(self):
        check_part(self.of)

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return self.of.rules

    def combine(self, gradients):
        return self.of.combine(gradients)


@dataclass(frozen=True)
class SignAgreement:
    """where(sign(g_base) = sign(g_reference), g_base, 0), parameter by parameter.

    NaN where g_base is, or is infinite and g_reference has no sign.

    With base M and reference R it is the combined gradient (C) of Schnell and Thuerey (ICLR 2024).
    """

    base: GradientEstimator
    reference: GradientEstimator

    def __post_init__(self):
        check_part(self.base)
        check_part(self.reference)

    @property
    def rules(self) -> tuple[AdjointRule, ...]:
        return tuple(dict.fromkeys((*self.reference.rules, *self.base.rules)))

    def pair(self, gradients: Mapping[AdjointRule, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.base.combine(gradients), self.reference.combine(gradients)

    def combine(self, gradients):
        base, reference = self.pair(gradients)
        # A NaN of the reference agrees with nothing; one of the base stays, or a member without a gradient would seem
        # to train. Products, since a CPU takes several times as long for torch.where and masked_fill.
        signs = torch.sign(reference).nan_to_num_(nan=0.0)
        return signs.mul(base).clamp_(min=0.0).mul_(signs)

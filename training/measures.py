"""What an epoch's record says: its losses, and what its updates measured on the way, which is read once, at its end."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from engine import AdjointRule
from engine.norms import wide_norm
from training.clipping import Clipping
from training.estimators import GradientEstimator, Whole
from training.metrics import MEASURED, for_json
from training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class EpochRecord:
    """Losses [P] of one epoch: mean over the epoch's updates, and on the other sets after it. NaN once frozen.

    What was measured has None for what is not finite or not there.

    Attributes:
        gradient_norm, clipped_norm: [P], mean over the updates of the Euclidean norm before and after clipping; 0 of
            one whose squares vanish.
        adjoint_norm: [P], mean over the updates and their samples of |λ_0|, of that sweep of a member in which it is
            largest; None of members without a sweep.
        sign_agreement: [P], of the components in which a member's two gradients are both not 0, in the first and then
            every fourth update, the share in which they have one sign; None of members whose gradient is not made of
            two.
        update_seconds: mean over the updates of what one took, all members together.
    """

    epoch: int
    train_loss: list[float]
    test_loss: list[float]
    validation_loss: list[float] | None = None
    gradient_norm: list[float | None] | None = None
    clipped_norm: list[float | None] | None = None
    adjoint_norm: list[float | None] | None = None
    sign_agreement: list[float | None] | None = None
    update_seconds: float | None = field(default=None, compare=False)


class _Measured(Protocol):
    """Of a member: how it makes its gradient and bounds it."""

    @property
    def estimator(self) -> GradientEstimator: ...
    @property
    def clipping(self) -> Clipping: ...


# Numbers from which on nothing waits to be measured together: then operations cost more than that there is one.
_MANY = 2**13
_SIGNS_EVERY = 4  # updates: each has thousands of signs, and to count them takes as long as several norms


class _Sum:
    """The sum over updates of what is measured of each, many updates at a time.

    Args:
        measure: the sum [..., P] for tensors of K updates, [K, ...] each.
    """

    def __init__(self, measure: Callable[..., torch.Tensor]):
        self._measure = measure
        self._waiting: list[tuple[torch.Tensor, ...]] = []
        self._numbers = 0
        self._total: torch.Tensor | None = None

    def add(self, *tensors: torch.Tensor) -> None:
        """Add those of an update, which nobody changes any more."""
        self._waiting.append(tensors)
        self._numbers += sum(map(torch.numel, tensors))
        if self._numbers >= _MANY:
            self._settle()

    def total(self) -> torch.Tensor:
        """What was measured so far, of at least one update."""
        if self._waiting:
            self._settle()
        assert self._total is not None
        return self._total

    def _settle(self) -> None:
        alike = list(zip(*self._waiting, strict=True))
        several = [torch.stack(each) for each in alike] if len(self._waiting) > 1 else [each[0][None] for each in alike]
        found = self._measure(*several)
        self._total = found if self._total is None else self._total + found
        self._waiting, self._numbers = [], 0


class Measures:
    """What the updates of an epoch are measured by, for each member, on the device until the epoch has ended.

    Outside of `epoch` nothing is added, and each epoch begins anew, so one that is made again counts once.

    Args:
        members: whose gradients are measured.
        device: of the gradients.
        batch: samples of a member; ranks: who shares them.
    """

    def __init__(self, members: Sequence[_Measured], device: torch.device, batch: int = 1, ranks: Ranks = ALONE):
        self._members, self._device, self._batch, self._ranks = members, device, batch, ranks
        self._clips = any(member.clipping.kind != "none" for member in members)
        self._open, self._began = False, 0.0
        self._forget()

    def _forget(self) -> None:
        self._gradient, self._clipped = _Sum(_over_updates), _Sum(_over_updates)
        self._adjoints: dict[AdjointRule, _Sum] = {}
        self._signs: dict[GradientEstimator, tuple[Any, _Sum]] = {}
        self._updates = 0

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """A block whose updates are measured, and nothing that was before it."""
        self._forget()
        self._open, self._began = True, time.perf_counter()
        try:
            yield
        finally:
            self._open = False

    def adjoints(self, initial: Mapping[AdjointRule, torch.Tensor]) -> None:
        """Add λ_0 [P·b, *state_shape] of each rule."""
        for rule, adjoint in initial.items() if self._open else ():
            self._adjoints.setdefault(rule, _Sum(self._sizes)).add(adjoint)

    def signs(self, estimator: GradientEstimator, rows: Any, gradients: Mapping[Any, torch.Tensor]) -> None:
        """Add the agreement of the two gradients that an estimator of these members combines, if it does."""
        if not self._open or self._updates % _SIGNS_EVERY:
            return
        made = estimator
        while isinstance(made, Whole):
            made = made.of
        if hasattr(made, "pair"):
            _, signs = self._signs.setdefault(estimator, (rows, _Sum(_agreeing)))
            signs.add(*made.pair(gradients))  # type: ignore[attr-defined]

    def gradient(self, gradient: torch.Tensor) -> None:
        """Add gradients [P, n] before clipping; what is not clipped is left to `clipped`."""
        if self._open and self._clips:
            self._gradient.add(wide_norm(gradient))

    def clipped(self, norms: torch.Tensor) -> None:
        """Add an update by the norms [P] of its gradients after clipping."""
        if self._open:
            self._clipped.add(norms)
            self._updates += 1

    def found(self, active: torch.Tensor, updates: int) -> dict[str, Any]:
        """The record's fields after an epoch of so many updates, None of members that are not `active` [P]."""
        clipped = self._clipped.total()
        gradient = self._gradient.total() if self._clips else clipped
        agreement, adjoint = (torch.full_like(clipped, torch.nan) for _ in range(2))
        for rows, signs in self._signs.values():
            balance, counted = signs.total()
            agreement[rows] = (1.0 + balance / counted) / 2.0
        for rule, sizes in self._adjoints.items():
            uses = torch.tensor([rule in member.estimator.rules for member in self._members], device=self._device)
            (size,) = self._ranks.mean(self._batch, sizes.total())
            adjoint = torch.where(uses & ~(size <= adjoint), size, adjoint)
        columns = gradient / updates, clipped / updates, adjoint / updates, agreement
        read = for_json(torch.where(active, torch.stack(columns), torch.nan).tolist())
        seconds = (time.perf_counter() - self._began) / updates
        return dict(zip(MEASURED, read, strict=True)) | {"update_seconds": seconds}

    def _sizes(self, adjoints: torch.Tensor) -> torch.Tensor:
        return wide_norm(adjoints.flatten(2)).view(len(adjoints), len(self._members), -1).mean(2).sum(0)


def _over_updates(norms: torch.Tensor) -> torch.Tensor:
    return norms.double().sum(0)


def _agreeing(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How many more components agree in sign than do not, and how many have a sign in both, [2, P]."""
    both = torch.sign(one).mul_(torch.sign(other))
    return torch.stack([both.sum(2), both.abs_().sum(2)]).double().sum(1)

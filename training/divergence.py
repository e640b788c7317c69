"""Members whose losses or gradients are not finite: which, when and why; and physics that is to be doubted."""

import warnings
from dataclasses import dataclass

import torch

from engine import EvenflowWarning, System, Trajectory
from training.ranks import Ranks, says
from training.settings import TrainingSettings


@dataclass(frozen=True)
class Divergence:
    """Why and when a member was frozen.

    Attributes:
        member: its index.
        epoch, update: the update under way, both counted from 1.
        cause: what was not finite, and where, in a sentence.
    """

    member: int
    epoch: int
    update: int
    cause: str


class Doubts:
    """Tells, once for a training, that rollouts are beyond what their system's physics holds for."""

    def __init__(self, system: System):
        self._system, self._told = system, False

    def tell(self, states: torch.Tensor) -> None:
        """Warn if the system doubts states [T, B, *state_shape] of rollouts and no rank has told anything before."""
        found = None if self._told else self._system.doubts(states.detach())
        if found is not None:
            self._told = True
            if says(f"doubts about {self._system.name}"):
                warnings.warn(found, EvenflowWarning, stacklevel=2)


def within(rows: torch.Tensor, most: float) -> torch.Tensor:
    """Which rows [P, n] are finite and at most `most` throughout."""
    return torch.isfinite(torch.linalg.vector_norm(rows, 2, 1)) | (rows.abs() <= most).all(1)


def place_of(rollout: Trajectory, member: int, part: slice, ranks: Ranks) -> tuple[int, int] | None:
    """(step, sample) of a member's first state that is not finite in the last rollout, `part` its samples here."""
    own = part.stop - part.start
    found = rollout.first_nonfinite(slice(member * own, (member + 1) * own))
    return ranks.earliest(None if found is None else (found[0], found[1] - member * own + part.start))


def cause_of(
    place: tuple[int, int] | None, loss: torch.Tensor, gradient: torch.Tensor, settings: TrainingSettings
) -> str:
    """What is not finite of a member, in words: its states, if `place_of` found one, its loss, its gradient."""
    if place is not None:
        return f"the state is not finite at step {place[0]}, sample {place[1]}"
    if not torch.isfinite(loss):
        return "the loss is not finite"
    if torch.isfinite(gradient).all():
        return f"the gradient's square, which {settings.optimiser} keeps, is beyond {gradient.dtype}"
    return "the gradient is not finite"

"""Members whose losses or gradients are not finite: which, when and why."""

from dataclasses import dataclass

import torch

from engine import Trajectory
from training.settings import TrainingSettings


@dataclass(frozen=True)
class Divergence:
    """Why and when a member was frozen."""

    member: int
    epoch: int
    update: int
    cause: str


def within(rows: torch.Tensor, most: float) -> torch.Tensor:
    """Which rows [P, n] are finite and at most `most` throughout."""
    return torch.isfinite(torch.linalg.vector_norm(rows, 2, 1)) | (rows.abs() <= most).all(1)


def cause_of(
    rollout: Trajectory | None, member: int, loss: torch.Tensor, gradient: torch.Tensor, settings: TrainingSettings
) -> str:
    """What is not finite of a member, in words: its states in the last rollout, if any, its loss, its gradient."""
    first = member * settings.batch_size
    place = None if rollout is None else rollout.first_nonfinite(slice(first, first + settings.batch_size))
    if place is not None:
        return f"the state is not finite at step {place[0]}, sample {place[1] - first}"
    if not torch.isfinite(loss):
        return "the loss is not finite"
    if torch.isfinite(gradient).all():
        return f"the gradient's square, which {settings.optimiser} keeps, is beyond {gradient.dtype}"
    return "the gradient is not finite"

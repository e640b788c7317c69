"""What a finished training amounts to: members grouped by everything but their seed, and their final losses."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from training.gradients import rank_of
from training.variant import Label, Variant


@dataclass(frozen=True)
class Group:
    """Members of an ensemble that differ in their seed alone.

    Attributes:
        name: for people, such as "C" or "C, clipping norm"; only what differs between groups is named.
        variant: what they share.
        members: their indices.
    """

    name: str
    variant: Variant
    members: tuple[int, ...]


@dataclass(frozen=True)
class GroupSummary:
    """A group's test loss after the last epoch, over the members that have a finite one (None if none has).

    Attributes:
        solved: members below the task's threshold, or None if it has none.
        diverged: members without a finite one, as in studies: frozen in training, or lost from the states of the test.
    """

    group: Group
    median: float | None
    lowest: float | None
    highest: float | None
    solved: int | None
    diverged: int


def groups(labels: Sequence[Label]) -> list[Group]:
    """Group the members of an experiment, in the order of their gradients, then of their other settings."""
    found: dict[Variant, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(label.variant, []).append(index)
    clipped, rated = (len({getattr(each, name) for each in found}) > 1 for name in ("clipping", "learning_rate"))
    result = []
    for variant, members in found.items():
        parts = [variant.gradient]
        parts += [f"clipping {variant.clipping}"] * clipped + [f"learning rate {variant.learning_rate}"] * rated
        result.append(Group(", ".join(parts), variant, tuple(members)))
    return sorted(result, key=lambda group: rank_of(group.variant.gradient))


def summaries(
    labels: Sequence[Label], test_loss: Sequence[float | None], threshold: float | None
) -> list[GroupSummary]:
    """Summarise the test losses of one epoch (NaN, infinite or None: diverged), group by group."""
    result = []
    for group in groups(labels):
        losses = [test_loss[member] for member in group.members]
        finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
        solved = None if threshold is None else sum(loss < threshold for loss in finite)
        median, lowest, highest = (
            (statistics.median(finite), min(finite), max(finite)) if finite else (None, None, None)
        )
        result.append(GroupSummary(group, median, lowest, highest, solved, len(losses) - len(finite)))
    return result


def loss_text(value: float | None) -> str:
    """A loss as people read it; None is that of a divergence."""
    return "diverged" if value is None else f"{value:.3g}"

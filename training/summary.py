"""What a finished training amounts to: members grouped by everything but their seed, and their final losses."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.gradients import rank_of

_NOT_SET_APART = ("seed",)


@dataclass(frozen=True)
class Group:
    """Members of an ensemble that differ in their seed alone.

    Attributes:
        name: for people, such as "C" or "C, clipping norm"; only what differs between groups is named.
        gradient: its text.
        members: their indices.
    """

    name: str
    gradient: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """A group's test loss after the last epoch, over the members that did not diverge (None if all did).

    Attributes:
        solved: members below the task's threshold, or None if it has none.
    """

    group: Group
    median: float | None
    lowest: float | None
    highest: float | None
    solved: int | None
    diverged: int


def groups(labels: Sequence[dict[str, Any]]) -> list[Group]:
    """Group the members of an experiment, in the order of their gradients, then of their other settings."""
    found: dict[tuple, list[int]] = {}
    keys = [key for key in labels[0] if key not in _NOT_SET_APART]
    for index, label in enumerate(labels):
        found.setdefault(tuple(label[key] for key in keys), []).append(index)
    varying = [key for key in keys if key != "gradient" and len({label[key] for label in labels}) > 1]
    result = []
    for values, members in found.items():
        named = dict(zip(keys, values, strict=True))
        parts = [named["gradient"], *(f"{key.replace('_', ' ')} {named[key]:}" for key in varying)]
        result.append(Group(", ".join(parts), named["gradient"], tuple(members)))
    return sorted(result, key=lambda group: rank_of(group.gradient))


def outcomes(
    labels: Sequence[dict[str, Any]], test_loss: Sequence[float | None], threshold: float | None
) -> list[Outcome]:
    """Summarise the test losses of one epoch (NaN or None: diverged), group by group."""
    result = []
    for group in groups(labels):
        losses = [test_loss[member] for member in group.members]
        finite = [loss for loss in losses if loss is not None and loss == loss]
        solved = None if threshold is None else sum(loss < threshold for loss in finite)
        median, lowest, highest = (
            (statistics.median(finite), min(finite), max(finite)) if finite else (None, None, None)
        )
        result.append(Outcome(group, median, lowest, highest, solved, len(losses) - len(finite)))
    return result

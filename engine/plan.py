"""How a rollout is cut into segments so that its backward pass fits a memory budget."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from engine.errors import BudgetError
from engine.memory import format_bytes, parse_bytes

# Taichi indexes arrays by 32-bit integers.
MOST_ELEMENTS = 2**31 - 1
# Plans of fewer segments are counted slot by slot.
_FEW_SEGMENTS = 64


@dataclass(frozen=True)
class Segment:
    """Steps [start, stop) of a rollout; step `start` is kept in buffer slot `start - base`."""

    start: int
    stop: int
    base: int

    @property
    def first(self) -> int:
        return self.start - self.base

    @property
    def last(self) -> int:
        return self.stop - self.base

    def blocks(self, block: int, horizon: int) -> list[tuple[int, int]]:
        """Slots of the blocks of time that this segment touches, each a whole block.

        Work that is batched over time is batched over the same blocks [k·block, (k+1)·block) of the horizon
        whatever the segment, so that every row sees the same matrix shapes and comes out the same to the bit.
        """
        starts = range(self.base, self.stop, block)
        return [(start - self.base, min(start + block, horizon) - self.base) for start in starts]

    def own_blocks(self, block: int, horizon: int) -> list[tuple[int, int]]:
        """`blocks` without the slots that belong to neighbouring segments."""
        return [(max(first, self.first), min(last, self.last)) for first, last in self.blocks(block, horizon)]


@dataclass(frozen=True)
class Segments(Sequence[Segment]):
    """A horizon cut into segments of `length` steps (the last may be shorter), each made when it is asked for."""

    horizon: int
    length: int
    block: int

    def __len__(self) -> int:
        return -(-self.horizon // self.length)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> list[Segment]: ...
    def __getitem__(self, index):
        found = range(0, self.horizon, self.length)[index]
        return [self._starting(start) for start in found] if isinstance(index, slice) else self._starting(found)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        place = range(len(self))[start:stop].index(value.start // self.length)
        return range(len(self))[start:stop][place]

    def _starting(self, start: int) -> Segment:
        return Segment(start, min(start + self.length, self.horizon), start // self.block * self.block)

    def slots(self) -> int:
        """Slots that hold any segment with whole blocks around it; of many segments a bound, which most reach."""
        if len(self) <= _FEW_SEGMENTS:
            return max(min(-(-part.stop // self.block) * self.block, self.horizon) - part.base for part in self)
        latest = self.block - math.gcd(self.length, self.block)  # where in its block a segment begins at the latest
        return min(self.horizon, -(-(latest + self.length) // self.block) * self.block)


@dataclass(frozen=True)
class MemoryPlan:
    """Segments of a rollout and the bytes they will take.

    Attributes:
        segments: in forward order; one segment means that everything is stored.
        slots: steps that the buffers hold at once.
        predicted: bytes of all buffers at the peak of the backward pass.
    """

    segments: Segments
    slots: int
    predicted: int


def plan(
    horizon: int,
    block: int,
    memory: str | int | None,
    bytes_per_slot: int,
    bytes_per_checkpoint: int,
    bytes_fixed: int,
    segment: int | None = None,
    elements_per_slot: int = 0,
) -> MemoryPlan:
    """Choose the longest segments that fit.

    Args:
        horizon: steps T.
        block: steps that are linearised together.
        memory: budget for all buffers, bytes or text such as "2GiB"; None stores everything.
        bytes_per_slot: bytes of one step's states, adjoints, linearisation and launches.
        bytes_per_checkpoint: bytes of one stored first state.
        bytes_fixed: bytes that do not depend on the segment.
        segment: a segment length that overrides the budget.
        elements_per_slot: elements that a slot takes in the largest array, of which kernels can index 2³¹ - 1.

    Raises:
        BudgetError: no segment length fits.
    """

    def candidate(length: int) -> MemoryPlan:
        segments = Segments(horizon, length, block)
        slots, checkpoints = segments.slots(), len(segments) if len(segments) > 1 else 0
        predicted = bytes_fixed + slots * bytes_per_slot + checkpoints * bytes_per_checkpoint
        return MemoryPlan(segments, slots, predicted)

    def indexable(plan_: MemoryPlan) -> bool:
        return (plan_.slots + 1) * elements_per_slot <= MOST_ELEMENTS

    chosen = candidate(horizon if segment is None else min(segment, horizon))
    if segment is None and memory is not None:
        return _longest_within(parse_bytes(memory), chosen, candidate, indexable)
    if not indexable(chosen):
        raise BudgetError(
            f"Expected arrays of at most {MOST_ELEMENTS} elements, which is what kernels can index, got "
            f"{(chosen.slots + 1) * elements_per_slot} for {chosen.slots} stored steps; give a memory budget, "
            "or lower the batch or the horizon."
        )
    return chosen


def _longest_within(
    budget: int,
    chosen: MemoryPlan,
    candidate: Callable[[int], MemoryPlan],
    indexable: Callable[[MemoryPlan], bool],
) -> MemoryPlan:
    """`chosen`, the plan that stores everything, if it fits, else that of the longest segments that do."""
    horizon, block = chosen.segments.horizon, chosen.segments.block
    if chosen.predicted <= budget and indexable(chosen):
        return chosen
    smallest = chosen
    for length in _lengths(horizon):
        plan_ = candidate(length)
        # Segments of whole blocks take no slots of their neighbours'.
        if length % block and plan_.slots > (whole := -(-length // block) * block) < horizon:
            plan_ = candidate(whole)
        if plan_.predicted <= budget and indexable(plan_):
            return plan_
        smallest = min(smallest, plan_, key=lambda entry: (not indexable(entry), entry.predicted))
    if not indexable(smallest):
        raise BudgetError(
            f"Expected arrays of at most {MOST_ELEMENTS} elements, which is what kernels can index, got more for "
            f"{smallest.slots} stored steps, the fewest of {horizon}; lower the batch."
        )
    check_budget(smallest, budget)
    return smallest


def check_budget(plan_: MemoryPlan, budget: int) -> None:
    """BudgetError if a plan takes more than so many bytes."""
    if plan_.predicted > budget:
        raise BudgetError(
            f"Expected a memory budget of at least {format_bytes(plan_.predicted)} for {plan_.segments.horizon} steps, "
            f"got {format_bytes(budget)}; raise memory, or lower the batch or the horizon."
        )


def _lengths(horizon: int) -> Iterator[int]:
    """Of all lengths that give as many segments the shortest, which needs the fewest slots; for 2 segments and more."""
    length = horizon
    while length > 1:
        count = -(-horizon // (length - 1))
        length = -(-horizon // count)
        yield length

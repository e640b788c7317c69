"""How a rollout is cut into segments so that its backward pass fits a memory budget."""

import ctypes
import math
import re
import sys
from dataclasses import dataclass

from engine.errors import BudgetError

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_M_MMAP_THRESHOLD = -3  # malloc.h


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
class MemoryPlan:
    """Segments of a rollout and the bytes they will take.

    Attributes:
        segments: in forward order; one segment means that everything is stored.
        slots: steps that the buffers hold at once.
        predicted: bytes of all buffers at the peak of the backward pass.
    """

    segments: tuple[Segment, ...]
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
) -> MemoryPlan:
    """Choose the longest segments that fit.

    Args:
        horizon: steps T.
        block: steps that are linearised together.
        memory: budget for all buffers, bytes or text such as "2GiB"; None stores everything.
        bytes_per_slot: bytes of one step's states, adjoints and linearisation.
        bytes_per_checkpoint: bytes of one stored first state.
        bytes_fixed: bytes that do not depend on the segment.
        segment: a segment length that overrides the budget.

    Raises:
        BudgetError: no segment length fits.
    """
    budget = None if memory is None else parse_bytes(memory)

    def candidate(length: int) -> MemoryPlan:
        segments = []
        for start in range(0, horizon, length):
            segments.append(Segment(start, min(start + length, horizon), start // block * block))
        slots = max(max(stop for _, stop in part.blocks(block, horizon)) for part in segments)
        checkpoints = len(segments) if len(segments) > 1 else 0
        predicted = bytes_fixed + slots * bytes_per_slot + checkpoints * bytes_per_checkpoint
        return MemoryPlan(tuple(segments), slots, predicted)

    if segment is not None:
        return candidate(min(segment, horizon))
    everything = candidate(horizon)
    if budget is None or everything.predicted <= budget:
        return everything
    # Of all lengths that give as many segments, the shortest needs the fewest slots.
    lengths = sorted({-(-horizon // count) for count in range(2, horizon + 1)}, reverse=True)
    smallest = everything
    for length in lengths:
        plan_ = candidate(length)
        if plan_.predicted <= budget:
            return plan_
        smallest = min(smallest, plan_, key=lambda entry: entry.predicted)
    raise BudgetError(
        f"Expected a memory budget of at least {format_bytes(smallest.predicted)} for {horizon} steps, "
        f"got {format_bytes(budget)}; raise memory, or lower the batch or the horizon."
    )


def parse_bytes(text: str | int) -> int:
    """Bytes of "512MiB", "2 GB" or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) == 0:
        raise BudgetError(f"Expected a memory budget such as 512MiB or 2GiB, got {text!r}.")
    return int(float(match[1]) * unit)


def format_bytes(count: float) -> str:
    """ "1.5 MiB" for people, rounded up, so that what is written suffices."""
    units = (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 2))
    power = next((power for power in range(3) if abs(count) < 1024 ** (power + 1)), 3)
    unit, digits = units[power]
    return f"{math.ceil(count / 1024**power * 10**digits) / 10**digits:.{digits}f} {unit}"


def return_freed_memory() -> None:
    """Have the C library give freed tensors of 1 MiB and more back to the system at once, from now on.

    By default glibc keeps blocks of up to 32 MiB, and small objects that stay split what it keeps: processes of three
    times the memory in use were seen. Policies that torch's autograd differentiates take up to 1.7 times as long with
    it on large batches, since every such tensor is mapped anew; elsewhere no cost was seen. Only glibc has the switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**20)


class PeakMemory:
    """Growth of this process's resident memory, in bytes: `with PeakMemory() as peak: ...; peak.bytes`.

    On Linux the kernel's high-water mark is reset first, so that earlier peaks do not count; elsewhere only growth
    beyond an earlier peak is seen.
    """

    bytes: int = 0

    def __enter__(self) -> "PeakMemory":
        try:
            with open("/proc/self/clear_refs", "w") as handle:
                handle.write("5")
        except OSError:
            pass
        self._start = _resident("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        self.bytes = max(0, _resident("VmHWM") - self._start)


def _resident(field: str) -> int:
    try:
        with open("/proc/self/status") as handle:
            for line in handle:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

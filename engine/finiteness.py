"""Whether what was computed is finite, asked at once or once for many: the host waits for a device whenever it asks."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")

# Notes that are kept one by one: to add each to those before would take a device a kernel each time.
_MOST_NOTES = 512
# Work that takes so many seconds is not slowed by an answer, and dear to do again.
_LONG = 5.0


class Finiteness:
    """What a rollout and its sweeps ask of their own numbers, to which the answer is nearly always yes.

    In a block of `put_off` every question is answered by yes unseen and noted on the device, unless its pieces turn out
    to be long. `all_were` then asks them all at once; if it says no, what was done in the block has to be done again
    outside of one, where it goes another way.
    """

    def __init__(self):
        self._off = False
        self._noted: list[torch.Tensor] = []
        self._pieces, self._since = 0, 0.0

    def __call__(self, *tensors: torch.Tensor) -> bool:
        """Whether every element is finite, from sums; large finite elements may be taken for infinite ones."""
        if not self._off:
            return all(math.isfinite(tensor.sum()) for tensor in tensors)
        for tensor in tensors:
            self._note(tensor.sum())
        return True

    def holds(self, flags: torch.Tensor) -> bool:
        """Whether all of these booleans are true."""
        if not self._off:
            return bool(flags.all())
        self._note(flags.all().reciprocal())  # 1, or infinite
        return True

    def equal(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two tensors of one shape are equal."""
        return self.holds(one == other) if self._off else torch.equal(one, other)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """A block in which nothing waits for an answer."""
        self._off, self._noted = True, []
        self._pieces, self._since = 0, time.perf_counter()
        try:
            yield
        finally:
            self._off = False

    def unasked(self, work: Callable[[], Result]) -> tuple[Result | None, bool]:
        """What `work()` returns with every question put off, and whether yes was right; None if it failed where not."""
        try:
            with self.put_off():
                result = work()
        except Exception:  # perhaps of numbers that an answer would have kept away
            if self.all_were():
                raise
            return None, False
        return result, self.all_were()

    def piece_done(self) -> None:
        """Of the work in a block one of several pieces, as updates are, is done: where they are long, ask from now on.

        The first may have compiled kernels, so that the second one is timed.

        Raises:
            FloatingPointError: if yes was wrong so far, so that the work ends at once.
        """
        now = time.perf_counter()
        took, self._since, self._pieces = now - self._since, now, self._pieces + 1
        if self._off and self._pieces > 1 and took > _LONG:
            self._off = False
            if not self.all_were():
                raise FloatingPointError("Expected finite numbers, got others.")

    def all_were(self) -> bool:
        """Whether yes was right throughout the last block; false alarms are possible, where finite sums overflow."""
        return not self._noted or math.isfinite(self._total())

    def _note(self, value: torch.Tensor) -> None:
        self._noted.append(value.detach())
        if len(self._noted) >= _MOST_NOTES:
            self._noted = [self._total()]

    def _total(self) -> torch.Tensor:
        return torch.stack(self._noted).sum()

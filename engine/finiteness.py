"""Whether what was computed is finite, asked at once or once for many: the host waits for a device whenever it asks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")

# Notes that are kept one by one: to add each to those before would take a device a kernel each time.
_MOST_NOTES = 512


class Finiteness:
    """What a rollout and its sweeps ask of their own numbers, to which the answer is nearly always yes.

    In a block of `put_off` every question is answered by yes unseen and noted on the device. `all_were` then asks them
    all at once; if it says no, what was done in the block has to be done again outside of one, where it goes another
    way.
    """

    def __init__(self):
        self._off = False
        self._noted: list[torch.Tensor] = []

    def __call__(self, *tensors: torch.Tensor) -> bool:
        """Whether every element is finite, from sums; large finite elements may be taken for infinite ones."""
        if not self._off:
            return all(bool(torch.isfinite(tensor.sum())) for tensor in tensors)
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

    def all_were(self) -> bool:
        """Whether yes was right throughout the last block; false alarms are possible, where finite sums overflow."""
        return not self._noted or bool(torch.isfinite(self._total()))

    def _note(self, value: torch.Tensor) -> None:
        self._noted.append(value.detach())
        if len(self._noted) >= _MOST_NOTES:
            self._noted = [self._total()]

    def _total(self) -> torch.Tensor:
        return torch.stack(self._noted).sum()

"""Which loops are shared among threads or run in vector lanes, and which are not: handing out work costs time too."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine import runtime

STEP_ROWS = 1024
"""Samples from which one step of a rollout is shared among torch's threads."""
BLOCK_ROWS = 4096
"""Rows from which torch's work batched over time is shared among threads."""
LANES = 16
"""Independent sums that a kernel keeps side by side on the CPU: as many as LLVM turns into vector instructions."""
# Taichi hands a loop to its thread pool only above this many iterations; below it a serial loop saves the hand-over.
_SERIAL_ITERATIONS = 512
# Up to this many pairs, about 100 µs of them, waking other threads for a step costs more than it saves.
_SERIAL_PAIRS = 2**15


@contextmanager
def torch_threads(shared: bool) -> Iterator[None]:
    """Run a block with every thread of the runtime if its work is worth sharing, else with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.current().threads if shared else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def serial_loop(iterations: int) -> bool:
    """Whether a kernel's loop of this many iterations is better run by one thread."""
    return iterations <= _SERIAL_ITERATIONS and runtime.current().backend == "cpu"


def serial_pairs(rows: int, partners: int) -> bool:
    """`serial_loop` over `rows` particles, each of which is paired with as many `partners`."""
    return serial_loop(rows) or (rows * partners <= _SERIAL_PAIRS and runtime.current().backend == "cpu")


def lanes_pay(terms: int) -> bool:
    """Whether a kernel's sum over this many terms runs in lanes, as an inner loop over LANES independent sums.

    LLVM turns such a loop into vector instructions, but not one long sum.
    """
    return terms >= LANES and runtime.current().backend == "cpu"

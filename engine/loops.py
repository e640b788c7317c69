"""Which loops are shared among threads or run in vector lanes, and which are not: handing out work costs time too."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

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

# Of a long sum a thread of a device adds up at least so many terms.
_LEAST_CHUNK = 32
# A thread for each sample: in small blocks a few hundred samples are spread over many processors of the device.
_SAMPLE_BLOCK = 32


@contextmanager
def torch_threads(shared: bool) -> Iterator[None]:
    """Run a block with every thread of the runtime if its work is worth sharing, else with one; not so on CUDA."""
    if runtime.current().backend == "cuda":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.current().threads if shared else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def serial_loop(iterations: int) -> bool:
    """Whether a kernel's loop of this many iterations is better run by one thread."""
    return iterations <= _SERIAL_ITERATIONS and runtime.current().backend == "cpu"


class Loop(NamedTuple):
    """How the outermost loop of a kernel runs.

    Attributes:
        serial: by one thread.
        count: how many samples it is over; 0 for as many as the arrays have, which on a CPU compiles once for all.
        block_dim: threads of a CUDA block; None for as many as Taichi has.
        rows: how many things of each sample, where kernels are told; 0 as `count` is.
    """

    serial: bool
    count: int = 0
    block_dim: int | None = None
    rows: int = 0


def loop_over(samples: int, rows: int = 1, partners: int = 0, weight: float = 1.0) -> Loop:
    """The loop over `rows` things of each of `samples`, of which each is paired with as many `partners`.

    `weight` is how long one thing takes beside those of 50 ns or more, of which 512 are worth sharing.

    A device's loop whose bounds arrays tell takes another kernel to read them, and all blocks that it has room for.
    """
    total, backend = samples * rows, runtime.current().backend
    if backend == "cpu":
        return Loop(serial_loop(math.ceil(weight * total)) or 0 < total * partners <= _SERIAL_PAIRS)
    return Loop(False, samples, _SAMPLE_BLOCK if rows == 1 and backend == "cuda" else None, rows)


def device_chunk(terms: int) -> int:
    """How many terms of a long sum each thread of a device adds up, so that about as many sums are left to one."""
    return max(_LEAST_CHUNK, math.isqrt(terms))


def lanes_pay(terms: int) -> bool:
    """Whether a kernel's sum over this many terms runs in lanes, as an inner loop over LANES independent sums.

    LLVM turns such a loop into vector instructions, but not one long sum.
    """
    return terms >= LANES and runtime.current().backend == "cpu"

"""How many torch threads a piece of work gets: all of them where that pays, one where handing out work costs more."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine import runtime

STEP_ROWS = 1024
"""Samples from which one step of a rollout is shared among threads."""
BLOCK_ROWS = 4096
"""Rows from which work batched over time is shared among threads."""


@contextmanager
def torch_threads(shared: bool) -> Iterator[None]:
    """Run a block with every thread of the runtime if its work is worth sharing, else with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.current().threads if shared else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""JAX's steps of particles in blocks of rows, under `lax.map` with `jax.checkpoint`.

They never hold more than a block of pairs, and were the fastest of six ways that were tried.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.jax_pairs import jitted
from benchmarks.peers.peer import Pairs, Peer, PeerStep, Timed, everyone, matrix_sum, require

# Rows of pairs that a block holds: 64 to 250 were equally fast.
_ROWS = 80


def particles(make: PeerStep, system: Any, arrays: Sequence[np.ndarray]) -> Timed:
    """Jitted step and vjp, a block of rows after another."""
    jax, jnp = require("jax"), require("jax.numpy")

    def sum_pairs(ours: Any, theirs: Any, weight: Callable[[Any], Any]) -> Any:
        dim, count = ours.shape
        if count <= _ROWS:
            return matrix_sum(jnp, ours, theirs, weight)
        blocks = -(-count // _ROWS)
        padded = jnp.pad(ours, ((0, 0), (0, blocks * _ROWS - count)))
        rows = padded.reshape(dim, blocks, _ROWS).swapaxes(0, 1)
        sums = jax.lax.map(jax.checkpoint(lambda block: matrix_sum(jnp, block, theirs, weight)), rows)
        return sums.swapaxes(0, 1).reshape(dim, -1)[:, :count]

    return jitted(make, system, arrays, Pairs(sum_pairs, everyone))


PEER = Peer("JAX in blocks", "jax", step=particles)

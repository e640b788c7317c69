"""JAX's steps of particles with the neighbour lists of jax-md, which find those within a radius by cells.

The list is made anew in every step, as our cells are. Lists with a margin serve a few steps, which is not measured.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.jax_pairs import jitted
from benchmarks.peers.peer import Others, Pairs, Peer, PeerStep, Timed, matrix_sum, require

# Of places that no particle has, so that a list is never taken for current.
_ELSEWHERE = 1e6


def particles(make: PeerStep, system: Any, arrays: Sequence[np.ndarray]) -> Timed:
    """Jitted step and vjp; of the system's particles the last ones, those that are many, see those near them."""
    jax, jnp = require("jax"), require("jax.numpy")
    space, partition = require("jax_md.space"), require("jax_md.partition")
    dim, many = len(arrays[0]) // 2, arrays[0].shape[1] - arrays[1].shape[1]
    places = arrays[0][:dim, -many:].T
    corner = places.min(0) - 2.0 * system.radius
    box = places.max(0) - corner + 2.0 * system.radius
    displacement, _ = space.free()
    neighbours = partition.neighbor_list(displacement, box, system.radius, 0.0, mask_self=False)
    first = neighbours.allocate(jnp.asarray(places - corner))

    def near(rows: Any) -> Others:
        moved = jax.lax.stop_gradient(rows.T - corner)
        listed = first.set(reference_position=jnp.full_like(moved, _ELSEWHERE)).update(moved).idx
        return lambda row, absent: jnp.concatenate([row, jnp.full(1, absent, row.dtype)])[listed]

    return jitted(make, system, arrays, Pairs(lambda *given: matrix_sum(jnp, *given), near))


PEER = Peer("jax-md", "jax_md", step=particles, finds_neighbours=True)

"""JAX's steps of particles as matrices of all pairs, as it is usually written: jitted, differentiated by `jax.vjp`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.peer import Pairs, Peer, PeerStep, Timed, everyone, matrix_sum, require


def particles(make: PeerStep, system: Any, arrays: Sequence[np.ndarray]) -> Timed:
    """Jitted step and vjp, matrices of all pairs."""
    jnp = require("jax.numpy")
    return jitted(make, system, arrays, Pairs(lambda *given: matrix_sum(jnp, *given), everyone))


def jitted(make: PeerStep, system: Any, arrays: Sequence[np.ndarray], pairs: Pairs) -> Timed:
    """A step and its vjp under jit, bound to their inputs."""
    jax, jnp = require("jax"), require("jax.numpy")
    step = make(jnp, system, pairs)
    state, control, next_adjoint = (jax.device_put(array, jax.devices("cpu")[0]) for array in arrays)
    forward = jax.jit(step)
    adjoint = jax.jit(lambda x, u, following: jax.vjp(step, x, u)[1](following))
    return Timed(
        lambda: jax.block_until_ready(forward(state, control)),
        lambda: jax.block_until_ready(adjoint(state, control, next_adjoint)),
    )


PEER = Peer("JAX", "jax", step=particles)

"""NVIDIA Warp's steps of particles: kernels whose adjoints Warp makes, neighbours from its hash grids.

On the CPU it computes with one thread. Of a step `wp.Tape` records the launches, and the adjoint runs them backwards.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer, PeerStep, Timed, require


def particles(make: PeerStep, system: Any, arrays: Sequence[np.ndarray]) -> Timed:
    """Kernels for the kind of system; expressions for libraries of arrays are of no use here."""
    wp = require("warp")
    wp.config.quiet = True
    kernels = require("benchmarks.peers.warp_kernels")
    dim = len(arrays[0]) // 2
    vector = wp.types.vector(length=dim, dtype=wp.float32)

    def put(array: np.ndarray) -> Any:
        """[parts · dim, N] as vectors [parts, N]."""
        parts = np.ascontiguousarray(array.reshape(-1, dim, array.shape[1]).transpose(0, 2, 1))
        return wp.array(parts, dtype=vector, device="cpu", requires_grad=True)

    state, control, next_adjoint = map(put, arrays)
    following = wp.zeros_like(state, requires_grad=True)
    step = kernels.OF[type(system)](system, vector, state, control, following)
    tape = wp.Tape()
    with tape:
        step()

    def forward() -> np.ndarray:
        step()
        return _rows(following)

    def adjoint() -> tuple[np.ndarray, np.ndarray]:
        tape.zero()
        tape.backward(grads={following: next_adjoint})
        return _rows(state.grad), _rows(control.grad)

    return Timed(forward, adjoint)


def _rows(vectors: Any) -> np.ndarray:
    """Vectors [parts, N] as [parts, dim, N], without a copy."""
    return vectors.numpy().transpose(0, 2, 1)


PEER = Peer("Warp", "warp", step=particles, finds_neighbours=True)

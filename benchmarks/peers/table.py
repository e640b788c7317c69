"""The peers, one file each: a line here is all that another one takes."""

from benchmarks.peers import (
    jax_autodiff,
    jax_blocks,
    jax_by_hand,
    jax_neighbours,
    jax_pairs,
    torch_eager,
    torch_func,
    warp_steps,
)
from benchmarks.peers.peer import Peer

PEERS: list[Peer] = [
    jax_autodiff.PEER,
    jax_by_hand.PEER,
    jax_pairs.PEER,
    jax_blocks.PEER,
    jax_neighbours.PEER,
    warp_steps.PEER,
    torch_eager.PEER,
    torch_func.PEER,
]


def peers_of_task(task: str) -> list[Peer]:
    """Those that compute the training update of a task."""
    return [peer for peer in PEERS if task in peer.updates]


def peers_of_ensembles(task: str) -> list[Peer]:
    """Those that compute it for many members at once."""
    return [peer for peer in PEERS if task in peer.ensembles]


def peers_of_particles() -> dict[str, Peer]:
    """Those that step particles, by name."""
    return {peer.name: peer for peer in PEERS if peer.step is not None}

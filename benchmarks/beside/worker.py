"""One part in a process of its own: `python -m benchmarks.beside.worker KIND ARGUMENTS` prints it as JSON.

Every side takes turns in this process, once its gradient, or its step and adjoint, agree with ours:

    times    by gradient, or by "step" and "adjoint", and by side: median and least ms; in ensembles of each member
    differs  by peer, its largest difference from ours as a share of the norm; one that computes something else is
             not timed
    absent   peers that are not installed
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.apart import DONE, run_module
from benchmarks.beside.plan import GRADIENTS
from benchmarks.peers.peer import OURS, Peer, use_cores
from benchmarks.peers.table import peers_of_ensembles, peers_of_particles, peers_of_task
from benchmarks.scale.cases import case_named
from benchmarks.scale.study import sides_of
from benchmarks.scale.worker import ours, peer_of
from benchmarks.speed import make_trainer, updates_of
from benchmarks.timing import in_turns
from engine import EvenflowError, PeakMemory, init
from engine.norms import norm_of_array
from training.errors import RunError

# In quantum control phases turn by many radians, and in float32 each side rounds them in its own way.
_SAME = {"cart-pole": 1e-4, "guidance": 1e-4, "quantum": 1e-3}
_SAME_STEP = 1e-4
# What a part's turns may take: enough for the median of a few where a side is slow.
_SECONDS = 60.0


def imports() -> dict[str, Any]:
    """Seconds of `import evenflow` in a new process, after a first one that leaves the modules compiled."""
    found = [_ended("benchmarks.beside.importing", []) for _ in range(4)]
    return {"starts": {"import evenflow": statistics.median(found[1:])}}


def firsts(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds and memory of the first update of each side in a new process; ours with a new kernel cache, and again."""
    found: dict[str, Any] = {"starts": {}, "MiB": {}, "absent": []}
    with tempfile.TemporaryDirectory() as cache:
        for name in (f"{OURS}, nothing compiled before", f"{OURS}, kernels in the cache"):
            _first(found, name, OURS, options, {"TI_OFFLINE_CACHE_FILE_PATH": cache})
    for peer in peers_of_task("cart-pole"):
        if peer.installed:
            _first(found, peer.name, peer.name, options, {})
        else:
            found["absent"].append(peer.name)
    return found


def _first(found: dict[str, Any], name: str, side: str, options: dict[str, Any], surroundings: dict[str, str]) -> None:
    arguments = ["first", json.dumps({"side": side, "options": options})]
    result = _ended("benchmarks.beside.worker", arguments, surroundings)
    found["starts"][name], found["MiB"][name] = result["seconds"], result["bytes"] / 2**20


def _ended(module: str, arguments: list[str], surroundings: dict[str, str] | None = None) -> Any:
    ended = run_module(module, arguments, environment=surroundings)
    if ended.status != DONE:
        raise RunError(f"Expected {module} to finish, got: {(ended.output or ended.status).rstrip('.')}.")
    return ended.result


def first(side: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds from settings to the end of a first update of cart-pole along R, and by how much memory grew."""
    use_cores(1)
    init("cpu", "float32", threads=1)
    with PeakMemory() as peak:
        began = time.perf_counter()
        trainer, (initial, _) = make_trainer("cart-pole", "R", **options)
        if side == OURS:
            trainer.update(initial)
        else:
            (peer,) = (peer for peer in peers_of_task("cart-pole") if peer.name == side)
            peer.updates["cart-pole"](trainer, initial, "R").update()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": peak.bytes}


def alone(task: str, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """An update of one member on one core."""
    return _updates(task, options, 1, 1, rounds, [(peer, peer.updates[task]) for peer in peers_of_task(task)])


def together(task: str, options: dict[str, Any], members: int, threads: int, rounds: int) -> dict[str, Any]:
    """An update of many members, for each of them."""
    peers = [(peer, peer.ensembles[task]) for peer in peers_of_ensembles(task)]
    return _updates(task, options, members, threads, rounds, peers)


def _updates(
    task: str, options: dict[str, Any], members: int, threads: int, rounds: int, peers: Sequence[tuple[Peer, Any]]
) -> dict[str, Any]:
    use_cores(threads)
    init("cpu", "float32", threads=threads)
    found = _nothing([peer for peer, _ in peers])
    for letter in GRADIENTS:
        trainer, batch = make_trainer(task, letter, members, **options)
        updates = updates_of(trainer, batch, letter, peers, found["differs"], _SAME[task])
        found["times"][letter] = _taken(updates, rounds, members)
    return found


def particles(system: str, particles: int, threads: int, rounds: int) -> dict[str, Any]:
    """A step of particles and its adjoint; where a radius ends their reach beside peers that find neighbours."""
    use_cores(threads)
    init("cpu", "float32", threads=threads)
    case, peers = case_named(system), peers_of_particles()
    names = [name for name in sides_of(case, installed=False) if case.all_pairs or peers[name].finds_neighbours]
    found = _nothing([peers[name] for name in names])
    built = case.build(particles)
    given = case.start(built, particles)
    mine = ours(built, *given)
    expected = [np.array(part).reshape(-1) for part in (mine.forward(), *mine.adjoint())]
    sides = {OURS: mine}
    for name in names:
        if peers[name].installed:
            timed = peer_of(name, case, built, *given)
            parts = [np.asarray(part).reshape(-1) for part in (timed.forward(), *timed.adjoint())]
            apart = [
                norm_of_array(one - other) / norm_of_array(other) for one, other in zip(parts, expected, strict=True)
            ]
            found["differs"][name] = float(max(apart))
            if found["differs"][name] < _SAME_STEP:
                sides[name] = timed
    for label, part in (("step", "forward"), ("adjoint", "adjoint")):
        found["times"][label] = _taken({name: getattr(timed, part) for name, timed in sides.items()}, rounds)
    return found


def _nothing(peers: Sequence[Peer]) -> dict[str, Any]:
    return {"times": {}, "differs": {}, "absent": [peer.name for peer in peers if not peer.installed]}


def _taken(calls: dict[str, Callable[[], Any]], rounds: int, members: int = 1) -> dict[str, dict[str, float]]:
    times = in_turns(calls, rounds, 1, _SECONDS / len(GRADIENTS))
    return {
        side: {"median": statistics.median(values) / members, "least": min(values) / members}
        for side, values in times.items()
    }


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    kinds = {made.__name__: made for made in (imports, firsts, first, alone, together, particles)}
    try:
        print(json.dumps(kinds[sys.argv[1]](**json.loads(sys.argv[2]))))
    except EvenflowError as problem:
        sys.exit(str(problem))

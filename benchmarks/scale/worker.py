"""One measurement in a process of its own: `python -m benchmarks.scale.worker JOB PLUGIN...` prints its result as JSON.

step      ms of a step and of its adjoint, the pairs that interacted, the memory that each took
check     how far a peer's next state and adjoint are from ours
horizon   a rollout forward and backward under a memory budget; kernels are compiled by a short one before it
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import OURS, Timed, use_cores
from benchmarks.peers.table import peers_of_particles
from benchmarks.scale.cases import Case, case_named
from benchmarks.timing import now
from engine import FULL, EvenflowError, PeakMemory, Rollout, System, init
from engine.norms import norm_of_array
from training.doors import load

# A call is repeated so often and so long, but no longer than the patience once it has run a first time.
_LEAST_CALLS, _LEAST_SECONDS, _PATIENCE_SECONDS = 7, 1.0, 10.0


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        kind: "step", "check" or "horizon".
        system: name of a case.
        side: "Evenflow" or a peer.
        particles: N.
        threads: CPU threads.
        horizon: T, of a long rollout.
        memory: its budget.
    """

    kind: str
    system: str
    side: str
    particles: int
    threads: int
    horizon: int | None = None
    memory: str | None = None


def measure(job: Job) -> dict[str, Any]:
    """The result of one measurement, in this process, which is bound to as many cores as it has threads."""
    use_cores(job.threads)
    init("cpu", "float32", threads=job.threads)
    case = case_named(job.system)
    return {"step": _step, "check": check, "horizon": _horizon}[job.kind](job, case)


def _step(job: Job, case: Case) -> dict[str, Any]:
    if job.side != OURS:
        _warmpeer_of(job.side)
    with PeakMemory() as of_forward:
        system = case.build(job.particles)
        given = case.start(system, job.particles)
        timed = ours(system, *given) if job.side == OURS else peer_of(job.side, case, system, *given)
        timed.forward()
    with PeakMemory() as of_adjoint:
        timed.adjoint()
    result = {
        "state_bytes": given[0].nbytes,
        "forward_bytes": of_forward.bytes,
        "adjoint_bytes": of_adjoint.bytes,
        "forward_ms": times_of(timed.forward),
        "adjoint_ms": times_of(timed.adjoint),
    }
    return result | {"pairs": case.count(system, given[0])}


def check(job: Job, case: Case) -> dict[str, Any]:
    """The largest |theirs - ours| / |ours| of next state, adjoint and cotangent."""
    system = case.build(job.particles)
    given = case.start(system, job.particles)
    found = []
    for timed in (ours(system, *given), peer_of(job.side, case, system, *given)):
        found.append([np.asarray(part).reshape(-1) for part in (timed.forward(), *timed.adjoint())])
    apart = [norm_of_array(theirs - ours) / norm_of_array(ours) for ours, theirs in zip(*found, strict=True)]
    return {"disagreement": float(max(apart))}


class FinalSpread:
    """ℓ_T = mean square of all coordinates of position."""

    def running(self, states: torch.Tensor, controls: torch.Tensor, steps: torch.Tensor) -> None:
        return None

    def final(self, state: torch.Tensor) -> torch.Tensor:
        return state[:, : max(1, state.shape[1] // 2)].square().flatten(1).mean(1)


def _horizon(job: Job, case: Case) -> dict[str, Any]:
    assert job.horizon is not None
    with PeakMemory() as warm:
        system = case.build(job.particles)
        state, _, _ = case.start(system, job.particles)
        policy = case.policy(system)
        policy.initialise(0, torch.Generator().manual_seed(0))
        _roll(Rollout(system, policy, 1, len(state)), state)
    with PeakMemory() as peak:
        started = now()
        rollout = Rollout(system, policy, job.horizon, len(state), memory=job.memory)
        prepared = now()
        rollout.forward(state)
        forward = now()
        gradients = rollout.backward([FULL], FinalSpread())
        backward = now()
    rollout.restore(rollout.plan.segments[-1])
    adjoint = gradients.initial[FULL]
    return {
        "prepare_s": prepared - started,
        "forward_s": forward - prepared,
        "backward_s": backward - forward,
        "segments": len(rollout.plan.segments),
        "state_bytes": state.nbytes,
        "predicted_bytes": rollout.plan.predicted,
        "warm_bytes": warm.bytes,
        "peak_bytes": peak.bytes,
        "finite": bool(adjoint.isfinite().all()),
        "pairs_first": case.count(system, state),
        "pairs_last": case.count(system, rollout.final_state),
    }


def _roll(rollout: Rollout, state: torch.Tensor) -> None:
    rollout.forward(state)
    rollout.backward([FULL], FinalSpread())


def ours(system: System, state: torch.Tensor, control: torch.Tensor, next_adjoint: torch.Tensor) -> Timed:
    """Our step and adjoint, likewise."""
    following, adjoint, cotangent = torch.zeros_like(state), torch.zeros_like(state), torch.zeros_like(control)
    step = system.prepare_step(state, control, following)
    pull_back: Callable[[], None] | None = None

    def forward() -> torch.Tensor:
        step()
        return following

    def pull() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal pull_back
        if pull_back is None:
            pull_back = system.prepare_pull_back(state, control, next_adjoint, adjoint, cotangent)
        cotangent.zero_()
        pull_back()
        return adjoint, cotangent

    return Timed(forward, pull)


def peer_of(side: str, case: Case, system: System, *given: torch.Tensor) -> Timed:
    """A peer's step and adjoint, bound to state, control and an adjoint of the next state."""
    assert case.peer_step is not None
    make = peers_of_particles()[side].step
    assert make is not None
    return make(case.peer_step, system, [tensor[0].numpy().copy() for tensor in given])


def _warmpeer_of(side: str) -> None:
    """Load what the peer loads with its first call, so that it does not count as memory of the step."""
    if peers_of_particles()[side].needs in ("jax", "jax_md"):
        import jax

        jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(8, np.float32)))


def times_of(call: Callable[[], Any]) -> dict[str, float]:
    """Median, least and number of timed calls, in ms; the call has run before."""
    call()
    times: list[float] = []
    while not times or sum(times) < (_LEAST_SECONDS if len(times) >= _LEAST_CALLS else _PATIENCE_SECONDS):
        started = now()
        call()
        times.append(now() - started)
    return {"median": statistics.median(times) * 1e3, "least": min(times) * 1e3, "calls": len(times)}


def job_text(job: Job) -> str:
    """The job as the worker's argument."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for plugin in sys.argv[2:]:
        load(plugin)
    try:
        print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
    except EvenflowError as error:
        sys.exit(str(error))

"""One part in a process of its own: `python -m benchmarks.device.worker BACKEND KIND ARGUMENTS` prints it as JSON."""

import contextlib
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import taichi as ti
import torch

from benchmarks.apart import DONE, run_module
from benchmarks.check import LIMITS, launch_costs
from benchmarks.scale.cases import case_named
from benchmarks.scale.worker import ours, times_of
from benchmarks.speed import make_trainer
from benchmarks.timing import in_turns
from engine import EvenflowError, init
from engine.launch import prepare
from engine.norms import norm
from engine.systems import SYSTEMS
from training import Member, Trainer, TrainingSettings, build_task
from training.errors import RunError

_LONG = 2_000_000_000  # clock cycles that the device is kept busy for, about a second


@ti.kernel
def _double(source: ti.types.ndarray(ndim=1), target: ti.types.ndarray(ndim=1)):
    for i in range(source.shape[0]):
        target[i] = 2.0 * source[i]


def launches(backend: str) -> dict[str, Any]:
    """Whether a prepared launch repeats on new values, without copies through the host, in torch's order."""
    device = init(backend, "float32").device
    source = torch.rand(2, 1000, device=device)
    given, target = source[1].clone(), torch.zeros(1000, device=device)
    launch = prepare(_double, source[1], target)
    source.neg_().neg_()  # CUDA loads a kernel when it is first used, for which it may wait
    launch()
    repeats = torch.equal(target, 2 * given)
    done = torch.cuda.Event() if device.type == "cuda" else None
    if done is not None:
        torch.cuda.synchronize(device)
        torch.cuda._sleep(_LONG)
        done.record()
    source.neg_()
    launch()
    waits = None if done is None else done.query()
    return {"repeats": repeats and torch.equal(target, -2 * given), "waits for the device": waits}


def suite(backend: str, precision: str, files: list[str]) -> dict[str, Any]:
    """How many of the marked tests of some files pass, and which fail."""
    try:
        import pytest
    except ImportError:
        raise RunError("Expected pytest for the marked tests, got none; pip install pytest.") from None
    seen: Counter[str] = Counter()
    failed: list[str] = []

    class Outcomes:
        def pytest_runtest_logreport(self, report) -> None:
            if report.when == "call" or report.outcome != "passed":
                seen[report.outcome] += 1
                if report.outcome == "failed":
                    failed.append(report.nodeid)

    arguments = ["-q", "-p", "no:cacheprovider", "--backend", backend, "--precision", precision, *files]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = int(pytest.main(arguments, plugins=[Outcomes()]))
    if code not in (0, 1, 5) or (code == 1 and not failed):  # passed, failed, none of this precision
        raise RunError(f"Expected tests that run, got: {(said.getvalue().strip().splitlines() or ['nothing'])[-1]}.")
    return {"passed": seen["passed"], "skipped": seen["skipped"], "failed": failed}


def launch_cost(backend: str) -> dict[str, Any]:
    """µs of a plain call, of a prepared launch, and of one in a single thread."""
    runtime = init(backend, "float32")
    return launch_costs(runtime.dtype, runtime.device)


def pulls(backend: str, precision: str, systems: list[str]) -> dict[str, Any]:
    """Next states and pull-backs of the systems at three of their own samples, as flat lists."""
    runtime = init(backend, precision)
    found = {}
    for name in systems or list(SYSTEMS):
        system, draw = SYSTEMS[name](), torch.Generator().manual_seed(0)
        state = system.sample(3, draw)
        control, adjoint = (
            (torch.rand(3, *shape, generator=draw, dtype=torch.float64) - 0.5).to(runtime.device, runtime.dtype)
            for shape in (system.control_shape, system.state_shape)
        )
        parts = system.step(state, control), *system.pull_back(state, control, adjoint)
        found[name] = [part.double().flatten().tolist() for part in parts]
    return found


def parity(backend: str, systems: list[str]) -> dict[str, Any]:
    """The largest difference of a system's step or pull-back from the CPU's in float64, as a share of its norm."""
    result: dict[str, Any] = {}
    expected = _apart("pulls", "cpu", precision="float64", systems=systems)
    for precision in ("float32",) if backend == "vulkan" else ("float64", "float32"):
        found = _apart("pulls", backend, precision=precision, systems=systems)
        errors = {name: max(map(_difference, found[name], expected[name])) for name in expected}
        worst = max(errors, key=lambda name: errors[name])
        result[precision] = {"worst": worst, "error": errors[worst], "right": errors[worst] <= LIMITS[precision]}
    return result


def _difference(one: list[float], other: list[float]) -> float:
    found, expected = (torch.tensor(values, dtype=torch.float64) for values in (one, other))
    return float(norm(found - expected) / norm(expected).clamp(min=1e-12))


def _apart(kind: str, backend: str, **arguments: Any) -> dict[str, Any]:
    ended = run_module("benchmarks.device.worker", [backend, kind, json.dumps(arguments)])
    if ended.status != DONE:
        raise RunError(f"Expected {backend} to compute, got: {(ended.output or ended.status).rstrip('.')}.")
    return ended.result


def determinism(backend: str, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Whether two trainings of two epochs from the same seeds end with the same bits."""
    init(backend, "float32")
    settings, ends = TrainingSettings(train_samples=16, batch_size=8, test_samples=8), []
    for _ in range(2):
        trainer = Trainer(build_task(task, **options), [Member(), Member(seed=1)], settings)
        list(trainer.fit(2))
        ends.append(trainer.policy.theta.detach().clone())
    return {"same bits": torch.equal(*ends), "finite": bool(ends[0].isfinite().all())}


def updates(backend: str, members: int, horizon: int, rounds: int) -> dict[str, Any]:
    """Median ms of an update of R and of C with so many members, and the arithmetic of R's that no one can do without.

    Each weight takes part in a product forward and in one for the gradient, of every row and step; 2 operations each.
    """
    init(backend, "float32")
    found, work = {}, 0
    for letter in ("R", "C"):
        trainer, batch = make_trainer("cart-pole", letter, members, horizon=horizon)
        with trainer.rollout.finite.put_off():  # as in an epoch, after which all questions are asked together
            times = in_turns({letter: lambda trainer=trainer, batch=batch: trainer.update(*batch)}, rounds)[letter]
        if not trainer.rollout.finite.all_were():
            raise RunError(f"Expected updates of {letter} that stay finite, got others; nothing is measured.")
        found[f"{letter} ms"] = sorted(times)[len(times) // 2]
        work = 4 * trainer.policy.parameter_count * len(batch[0]) * horizon
    return {**found, "operations": work, "achieved per s": work / (found["R ms"] * 1e-3)}


def particles(backend: str, system: str, particles: int) -> dict[str, Any]:
    """Median ms of a step and of its adjoint, and the bytes that no one can do without: each array once."""
    runtime = init(backend, "float32")
    case = case_named(system)
    built = case.build(particles)
    state, control, adjoint = (tensor.to(runtime.device) for tensor in case.start(built, particles))
    timed = ours(built, state, control, adjoint)
    step, back = times_of(timed.forward)["median"], times_of(timed.adjoint)["median"]
    moved = 2 * state.nbytes + control.nbytes
    return {"step ms": step, "adjoint ms": back, "bytes": moved, "achieved per s": moved / (step * 1e-3)}


def ceilings(backend: str, side: int, bytes: int) -> dict[str, Any]:
    """Bytes per second of a copy, read and write, and operations per second of matrix products."""
    device = init(backend, "float32").device
    source = torch.zeros(bytes // 4, device=device)
    target = torch.empty_like(source)
    result = {"bytes per s": 2 * bytes / (times_of(lambda: target.copy_(source))["median"] * 1e-3)}
    for dtype in (torch.float32, torch.float64):
        matrix = torch.rand(side, side, dtype=dtype, device=device)
        out = torch.empty_like(matrix)
        spent = times_of(lambda matrix=matrix, out=out: torch.mm(matrix, matrix, out=out))["median"] * 1e-3
        result[f"{str(dtype).removeprefix('torch.')} operations per s"] = 2 * side**3 / spent
    return result


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (launches, suite, launch_cost, pulls, parity, determinism, updates, particles, ceilings)
}


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        found = KINDS[sys.argv[2]](sys.argv[1], **json.loads(sys.argv[3]))
        print(json.dumps(found, default=lambda value: None if math.isnan(value) else value))
    except EvenflowError as error:
        sys.exit(str(error))

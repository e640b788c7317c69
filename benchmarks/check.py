"""`evenflow check`: which backends start here, what a launch costs, and whether every system's adjoint is right.

A process runs one backend in one precision, so each pair is probed in a process of its own:
`python -m benchmarks.check cpu float64` prints one probe as JSON; plug-ins to load may follow.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import taichi as ti
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.apart import DONE, OVER_TIME, run_module
from benchmarks.extras import missing, sentences
from benchmarks.propagation import sentence, step_error
from benchmarks.timing import now
from engine import EvenflowError, available_backends, current, init
from engine.launch import prepare
from engine.norms import norm
from engine.registry import SHIPPED
from engine.system import System
from engine.systems import SYSTEMS, Held
from engine.trials.parameters_as_controls import ParametersAsControls
from training import TASKS, build_task
from training.doors import load
from training.plugins import blamed, to_load_again

PAIRS = (("cpu", "float64"), ("cpu", "float32"), ("vulkan", "float32"), ("cuda", "float64"), ("cuda", "float32"))
LIMITS = {"float64": 1e-7, "float32": 1e-4}
# Among thousands of particles some are always at a kink, such as where pressure sets in, where differences see nothing.
_SMALL = {"fluid": {"particles": 100, "horizon": 200}, "swarm": {"evaders": 100}}
_KINDS = ("plain", "prepared", "serial")
_PACKAGES = ("taichi", "torch", "numpy", "scipy", "jax", "ray")


def check(console: Console) -> bool:
    """Print what this machine has and the gradient checks; True if every probe ends and every check passes."""
    console.print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}", highlight=False)
    console.print(", ".join(f"{name} {_version(name)}" for name in _PACKAGES), highlight=False)
    for told in sentences(missing()):
        console.print(told, highlight=False, soft_wrap=True)
    there = available_backends()
    probes = {}
    for backend, precision in PAIRS:
        if backend in there:
            with console.status(f"checking {backend}, {precision}"):
                probes[backend, precision] = _probe_apart(backend, precision)
    _print_backends(console, there, probes)
    ended = {pair: probe for pair, probe in probes.items() if "error" not in probe}
    passed = _print_gradients(console, ended) and len(ended) == len(probes)
    error = probes.get(("cpu", "float64"), {}).get("quantum")
    if error is not None:
        console.print(sentence(error), highlight=False)
    return passed


def probe(backend: str, precision: str) -> dict[str, Any]:
    """Launch costs and, for each task's system, pull-backs at fixed inputs and their error against differences.

    On the CPU in float64 also how far quantum control's time step is from exact propagation.
    """
    started = time.perf_counter()
    runtime = init(backend, precision)
    result: dict[str, Any] = {"start_s": time.perf_counter() - started}
    result |= launch_costs(runtime.dtype, runtime.device)
    if (backend, precision) == ("cpu", "float64"):
        result["quantum"] = step_error()
    result["systems"], seen = {}, set()

    def of_task(name: str) -> dict[str, Any]:
        task = build_task(name, **_SMALL.get(name, {}))
        seen.add(type(_bare(task.system)))
        return _pull_back(task.system, task.initial_states(3, 0, "test", runtime.dtype))

    for name in TASKS:
        result["systems"][name] = _or_why_not(partial(of_task, name))
    for name, make in SYSTEMS.items():
        if SYSTEMS.origin(name) != SHIPPED or type(make()) not in seen:  # tasks know better where to look
            shown = name if name not in TASKS else f"{name} (system)"
            result["systems"][shown] = _or_why_not(partial(_of_system, make))
    return result


def _of_system(make: Callable[[], System]) -> dict[str, Any]:
    return _pull_back(make())


def _or_why_not(examine: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `examine` finds, or the sentence of what is wrong with a user's task or system, so that others are seen."""
    try:
        with blamed():
            return examine()
    except EvenflowError as error:
        return {"error": str(error)}


def _bare(system: System) -> System:
    return _bare(system.system) if isinstance(system, Held) else system


def _pull_back(system: System, state: torch.Tensor | None = None) -> dict[str, Any]:
    """Pull-backs of three starts as flat lists, and |⟨λ, δS⟩ - ⟨Sᵀλ, δ⟩| relative, by central differences.

    By states, controls and the parameters that may vary.

    Without states [3, *state_shape] components between -1/2 and 1/2 are taken.
    """
    draw = torch.Generator().manual_seed(0)

    def uniform(shape: tuple[int, ...]) -> torch.Tensor:
        values = torch.rand(3, *shape, generator=draw, dtype=torch.float64) - 0.5
        return values.to(dtype=current().dtype, device=current().device)

    state = uniform(system.state_shape) if state is None else state.to(current().device)
    control, adjoint = uniform(system.control_shape), uniform(system.state_shape)
    if system.constants:
        system = ParametersAsControls(system)
        control = system.usual(control)
    state_step, control_step = uniform(system.state_shape), uniform(system.control_shape)
    to_state, to_control = system.pull_back(state, control, adjoint)
    # The cube root of the rounding error balances it against the error of the difference at lengths of 1; many are 0.1.
    h = 0.1 * torch.finfo(state.dtype).eps ** (1 / 3)
    ahead = system.step(state + h * state_step, control + h * control_step)
    behind = system.step(state - h * state_step, control - h * control_step)
    expected = float((adjoint.double() * (ahead.double() - behind.double()) / (2 * h)).sum())
    found = float((to_state.double() * state_step).sum() + (to_control.double() * control_step).sum())
    return {
        "difference": abs(found - expected) / max(abs(expected), 1e-3),
        "pull_back": torch.cat([to_state.flatten(), to_control.flatten()]).double().tolist(),
    }


@ti.kernel
def _double(source: ti.types.ndarray(ndim=1), target: ti.types.ndarray(ndim=1), serial: ti.template()):
    ti.loop_config(serialize=serial)
    for i in range(source.shape[0]):
        target[i] = 2.0 * source[i]


def launch_costs(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Mean µs of calling a kernel on eight numbers: plainly, prepared, and prepared with a loop in one thread."""
    source = torch.ones(8, dtype=dtype, device=device)
    target = torch.zeros_like(source)
    calls = {
        "plain_us": (lambda: _double(source, target, False), 100),
        "prepared_us": (prepare(_double, source, target, False), 1000),
        "serial_us": (prepare(_double, source, target, True), 1000),
    }
    costs = {}
    for name, (call, count) in calls.items():
        call()
        started = now()
        for _ in range(count):
            call()
        costs[name] = (now() - started) / count * 1e6
    return costs


def _probe_apart(backend: str, precision: str) -> dict[str, Any]:
    ended = run_module("benchmarks.check", [backend, precision, *to_load_again()], seconds=300)
    if ended.status == OVER_TIME:
        return {"error": "did not finish in 5 minutes"}
    if ended.status != DONE or not ended.output:
        return {"error": ended.output or "ended without a word"}
    return ended.result


def _print_backends(console: Console, there: tuple[str, ...], probes: dict) -> None:
    table = Table(
        "backend",
        "precision",
        "starts",
        "start",
        "call",
        "prepared",
        "one thread",
        title="Backends and the cost of a launch",
    )
    for backend, precision in PAIRS:
        found = probes.get((backend, precision))
        if found is None:
            table.add_row(backend, precision, "not on this machine")
        elif "error" in found:
            table.add_row(backend, precision, f"fails: {found['error']}")
        else:
            costs = f"{found['start_s']:.2f} s", *(f"{found[f'{kind}_us']:.1f} µs" for kind in _KINDS)
            table.add_row(backend, precision, "yes", *costs)
    console.print(table)


def _print_gradients(console: Console, probes: dict) -> bool:
    """Each system's adjoint: against differences in CPU float64, and everywhere else against that."""
    table = Table("system", *(" ".join(pair) for pair in probes), title="Adjoints, relative error")
    oracle = probes.get(("cpu", "float64"), {}).get("systems", {})
    wrong: dict[str, str] = {}
    passed = bool(oracle)
    for name in oracle:
        cells = []
        for pair, found in probes.items():
            here = found["systems"][name]
            why = here.get("error") or oracle[name].get("error")
            if why is not None:
                wrong.setdefault(name, why)
                cells.append(Text("fails", "red"))
                continue
            error = _error(here, oracle[name], pair)
            good = error <= LIMITS[pair[1]]
            passed &= good
            cells.append(Text(f"{error:.1e}", "green" if good else "red"))
        table.add_row(name, *cells)
    console.print(table)
    for name, why in wrong.items():
        console.print(f"{name}: {why}", highlight=False)
    console.print(
        "CPU float64 is compared with central differences, everything else with CPU float64; limits "
        + ", ".join(f"{limit:g} in {precision}" for precision, limit in LIMITS.items())
        + ".",
        highlight=False,
    )
    return passed and not wrong


def _error(found: dict[str, Any], oracle: dict[str, Any], pair: tuple[str, str]) -> float:
    if pair == ("cpu", "float64"):
        return found["difference"]
    one, other = (torch.tensor(entry["pull_back"], dtype=torch.float64) for entry in (found, oracle))
    return float(norm(one - other) / norm(other))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    for plugin in sys.argv[3:]:
        load(plugin)
    print(json.dumps(probe(*sys.argv[1:3])))

"""`gradcheck`: the pull-back of any system beside central differences of its step, in a table where they differ."""

import math

import torch
from rich.console import Console
from rich.table import Table

from engine.contracts import check_system
from engine.errors import AdjointError, KernelError, ShapeError
from engine.system import System
from engine.trials.bench import Bench
from engine.trials.contract import Given, check_filled, check_step
from engine.trials.differences import Comparison, Departure, component, element
from engine.trials.isolation import Crash, isolated
from engine.trials.parameters_as_controls import ParametersAsControls

# Entries of the two Jacobians up to which each is compared; beyond, two random sums of their rows are.
_ENTRIES = 4096
# Components beyond which a random choice of half as many states and controls each is compared.
_COMPONENTS = 1024
_SHOWN = 20


def gradcheck(system: System, state: torch.Tensor, control: torch.Tensor, console: Console | None = None) -> bool:
    """Compare `system.pull_back` with central differences of `system.step`; print where they depart.

    By the states, by the controls and, at their usual values, by the parameters that may vary between samples.

    What a step and a pull-back promise besides is tried at the same points, as that of a `KernelSystem` always is: the
    step assigns its output and depends on its arguments alone, the pull-back assigns the adjoint and adds to the
    cotangent. What is broken of it is printed in a sentence.

    Every entry of ∂S/∂x, ∂S/∂u and ∂S/∂p is compared where they have at most 4096 for each sample, else two random
    combinations of their rows such as gᵀ∂S/∂x, and those at 1024 random components if there are more. Differences are
    taken at many step sizes; an entry counts as departing where the differences agree among each other and not with
    the pull-back, by more than 1e-6 of it in float64 and 1e-4 in float32, and as right where they do not settle, as at
    a kink or a jump. A pull-back that is not finite where the step is departs, unless the differences do not settle
    either.

    Args:
        system: any system.
        state: [B, *state_shape]; control: [B, *control_shape]; B points at which to compare.
        console: where the table goes; standard output by default.

    Returns:
        Whether nothing departs, and nothing is broken.

    Raises:
        SettingError: no system; ShapeError: tensors that do not fit it.
        KernelError, AdjointError: of a `KernelSystem`, kernels that cannot be run or differentiated at all.
    """
    check_system(system)
    system._check_batch(state, control)
    system.compiled()
    for name, values in (("states", state), ("controls", control)):
        if not torch.isfinite(values).all():
            raise ShapeError(f"Expected finite {name} to compare at, got some that are not; give others.")
    console = console or Console()
    with torch.inference_mode(False), torch.no_grad():
        bench, control = _bench(system, state, control)
        states, controls = state.reshape(-1, bench.n).clone(), control.reshape(-1, bench.m).clone()
        whole = bench.n * (bench.n + bench.m) <= _ENTRIES
        weights = (torch.eye(bench.n) if whole else _random(2, bench.n)).to(states)
        found = _told(isolated, lambda: _departures(bench, states, controls, weights), console)
    departed = [at for at in found or () if at.numeric == at.numeric]
    if departed:
        count = len(weights)
        _print(departed, system, count if whole else 0, [at.row // count for at in departed], console)
    return found is not None and not departed


def _departures(bench: Bench, states: torch.Tensor, controls: torch.Tensor, weights: torch.Tensor) -> list[Departure]:
    """Those of every weight at every point; KernelError or AdjointError of what is broken besides."""
    with torch.inference_mode():  # as rollouts launch them
        check_step(bench, Given(states, controls))
        lost = (~torch.isfinite(bench.step(states, controls)).all(1)).nonzero().flatten().tolist()
        if lost:
            raise AdjointError(
                f"Expected steps that are finite where they are compared, got another of sample {lost[0]}; give states "
                f"and controls inside the domain of system {bench.name!r}."
            )
        check_filled(bench, states, controls)
        rows = torch.arange(len(states), device=states.device).repeat_interleave(len(weights))
        repeated = weights.repeat(len(states), 1)
        compared = Comparison(bench.step, bench.pull_back, states[rows], controls[rows], repeated)
        return compared.departures(_chosen(bench.n, bench.m))


def _bench(system: System, state: torch.Tensor, control: torch.Tensor) -> tuple[Bench, torch.Tensor]:
    """What launches it on as many samples, and the controls of that: with parameters that may vary behind them."""
    if system.constants:
        tried = ParametersAsControls(system)
        return Bench(tried, len(state), tried.prepare_step, tried.prepare_pull_back), tried.usual(control)
    prepare = getattr(system, "prepare_unchecked", None)
    launches = (system.prepare_step, system.prepare_pull_back) if prepare is None else prepare(state, control)
    return Bench(system, len(state), *launches), control


def _told(run, work, console: Console) -> list[Departure] | None:
    """The departures, or None if there was a crash or a broken promise, which is printed."""
    try:
        return run(work, math.inf)
    except (KernelError, AdjointError) as error:
        console.print(str(error), highlight=False, markup=False, soft_wrap=True)
        return None
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        console.print(
            "Expected launches that run under torch.inference_mode(), as rollouts run them, got one that asks autograd "
            "there; write `with torch.inference_mode(False), torch.enable_grad():` there, and clone what it is given.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return None
    except Crash as crash:
        console.print(
            f"the kernels end the process ({crash}): do they leave their arrays, or their loops the autodiff stacks?",
            highlight=False,
        )
        return None


def _chosen(n: int, m: int) -> list[int] | None:
    if n + m <= _COMPONENTS:
        return None
    generator = torch.Generator().manual_seed(6)
    states, controls = (torch.randperm(size, generator=generator)[: _COMPONENTS // 2] for size in (n, m))
    return [*states.tolist(), *(n + controls).tolist()]


def _random(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _print(found: list[Departure], system: System, outputs: int, points: list[int], console: Console) -> None:
    table = Table("sample", "derivative", "pull-back", "differences", title=f"{system.name}: where the adjoint departs")
    for at, point in list(zip(found, points, strict=True))[:_SHOWN]:
        result = f"next_state{element(at.row % outputs, system.state_shape)}" if outputs else "g·next_state"
        first = math.prod(system.state_shape) + math.prod(system.control_shape)
        if at.index < first:
            name = component(at.index, system.state_shape, system.control_shape)
        else:
            name = list(system.parameters)[at.index - first]
        table.add_row(str(point), f"∂{result}/∂{name}".replace("[", "\\["), f"{at.analytic:.6g}", f"{at.numeric:.6g}")
    if len(found) > _SHOWN:
        table.caption = f"and {len(found) - _SHOWN} more"
    console.print(table, highlight=False)

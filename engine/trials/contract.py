"""What a step and its pull-back promise, tried at a few points; what departs is an error that names the component."""

import math
import time
import warnings
from typing import NamedTuple

import torch

from engine import runtime
from engine.errors import AdjointError, EvenflowWarning, KernelError
from engine.trials.bench import Bench, OutsideError, same
from engine.trials.differences import Comparison, Departure, component, element
from engine.trials.isolation import available

_SECONDS = 0.3
"""For the central differences of a trial; beyond that a random choice of components is compared."""
_LEAST_COMPONENTS = 2
_SLOW = 0.02
"""Seconds of a launch above which fewer points are tried."""
_PASSES = 12
"""Launches for each point that come besides."""
_COMPARED = 3
"""Random points at which a pull-back is compared, besides zero and points that were given."""


POINTS = 6
"""At which kernels are tried at least."""
_GIVEN = 2
"""Points of the user's own that are always among them; more as far as the time reaches."""


class Points:
    """States [K, n] and controls [K, m] at which kernels are tried: random ones of several sizes, zero, given ones.

    Attributes:
        given: for each point whether it is the user's own.
    """

    def __init__(self, system, given: tuple[torch.Tensor, torch.Tensor] | None):
        generator = torch.Generator().manual_seed(20230)
        n, m = (torch.Size(shape).numel() for shape in (system.state_shape, system.control_shape))
        states, controls = (torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (n, m))
        states[2] *= 0.1
        states[3:] = states[3:].abs() + 0.1  # for logarithms and roots
        controls[4:] = controls[4:].abs() + 0.1
        kind = {"dtype": runtime.current().dtype, "device": runtime.current().device}
        parts = [(states.to(**kind), controls.to(**kind)), (torch.zeros(1, n, **kind), torch.zeros(1, m, **kind))]
        if given is not None:
            parts.append((given[0].reshape(-1, n), given[1].reshape(-1, m)))
        self.states, self.controls = (torch.cat(part) for part in zip(*parts, strict=True))
        self.given = torch.arange(len(self.states)) >= 6

    def some(self, finite: torch.Tensor, most: int) -> torch.Tensor:
        """Indices of those where the step is finite that a pull-back is compared at, some of the user's own first."""
        wanted = finite.cpu()
        random, given = wanted[:5].nonzero().flatten()[:_COMPARED], 6 + wanted[6:].nonzero().flatten()
        zero = 5 + wanted[5:6].nonzero().flatten()
        return torch.cat([given[:_GIVEN], random, zero, given[_GIVEN:]])[:most]


class Given(NamedTuple):
    """Points that were chosen already: states [K, n] and controls [K, m]."""

    states: torch.Tensor
    controls: torch.Tensor


def check_step(bench: Bench, points: Points | Given) -> None:
    """Raise KernelError unless the step depends on its arguments alone and assigns all of its output."""
    most = _points_in_time(bench, points)
    states, controls = points.states[:most], points.controls[:most]
    contents = [_draw(seed, bench.batch, bench.n) + 2.0 for seed in (1, 2)]
    first = bench.step(states, controls, contents[0])
    bench.step(states + 1.0, controls + 1.0, contents[1])
    again = bench.step(states, controls, contents[0])
    tolerance = _tolerance(first)
    subject = f"the step kernel of system {bench.name!r}"
    other = bench.step(states, controls, contents[1])
    left, added = _leftovers(first, other, contents, bench.batch)
    if left is not None:
        raise KernelError(
            f"Expected {subject} to assign every component of next_state at every point, got "
            f"next_state{element(left, bench.state_shape)} left as it was; assign it."
        )
    if added is not None:
        raise KernelError(
            f"Expected {subject} to assign next_state whatever it held before, got "
            f"next_state{element(added, bench.state_shape)} added to; write = instead of +=."
        )
    differs = ~same(first, again, tolerance).all(0)
    if differs.any():
        raise KernelError(
            f"Expected {subject} to depend on its arguments alone, got another "
            f"next_state{element(_first(differs), bench.state_shape)} at a second launch; random numbers and what "
            "fields keep from launch to launch belong into the state or the control."
        )
    differs = ~same(first, other, tolerance).all(0)
    if differs.any():
        raise KernelError(
            f"Expected {subject} to assign next_state whatever it held before, got "
            f"next_state{element(_first(differs), bench.state_shape)} that depends on it; assign it once and "
            "work on locals."
        )
    _check_inside(bench, states, controls, first, tolerance, subject)
    _check_alone(bench, states, controls, first, tolerance, subject)


def _check_inside(bench: Bench, states, controls, first, tolerance, subject) -> None:
    bench.guard(float("nan"))
    beyond = ~same(bench.step(states, controls), first, tolerance).all(0)
    bench.guard(0.5)
    if beyond.any():
        raise OutsideError(
            f"Expected {subject} to stay inside its arrays, got next_state{element(_first(beyond), bench.state_shape)} "
            "that depends on what lies outside of them; check its indices, or run it under ef.init(debug=True)."
        )


def _check_alone(bench: Bench, states, controls, first, tolerance, subject) -> None:
    """Each sample's step is its own: change the others of a launch."""
    if bench.batch == 1:
        return
    differs = torch.zeros(bench.n, dtype=torch.bool, device=states.device)
    for parity in (0, 1):
        keep = torch.arange(len(states), device=states.device) % bench.batch % 2 == parity
        mixed = [torch.where(keep[:, None], rows, rows.flip(0) + 0.5) for rows in (states, controls)]
        differs |= ~same(bench.step(*mixed), first, tolerance)[keep].all(0)
    if differs.any():
        raise KernelError(
            f"Expected {subject} to step each sample of a batch by itself, got "
            f"next_state{element(_first(differs), bench.state_shape)} of one that depends on another; index every "
            "array by the sample first."
        )


def check_every_sample(bench: Bench, points: Points, pulls_back: bool) -> None:
    """Raise KernelError, or of a pull-back AdjointError, unless equal samples of a launch come to equal ends.

    Points are tried a few at a time, and a kernel may leave out samples further on, or take those of the first.
    """
    finite = torch.isfinite(bench.step(points.states, points.controls)).all(1).nonzero().flatten()
    if not len(finite) or len(finite) >= bench.batch:
        return
    rows = finite[torch.arange(bench.batch, device=finite.device) % len(finite)]
    states, controls = points.states[rows], points.controls[rows]
    if pulls_back:
        weights = _draw(3, len(finite), bench.n).repeat(-(-bench.batch // len(finite)), 1)[: bench.batch]
        found, what, kind = bench.pull_back(states, controls, weights), "pull_back", AdjointError
    else:
        found, what, kind = (bench.step(states, controls),), "step", KernelError
    for values in found:
        first = values[: len(finite)]
        apart = ~same(values, first[torch.arange(bench.batch, device=rows.device) % len(finite)], _apart(first))
        if apart.any():
            sample = int(apart.any(1).nonzero()[0])
            raise kind(
                f"Expected the {what} kernel of system {bench.name!r} to do the same to every sample of a batch, got "
                f"sample {sample} of {bench.batch} apart from an equal one; loop over state.shape[0], and index every "
                "array by the sample first."
            )


def check_pull_back(bench: Bench, points: Points, automatic: bool) -> None:
    """Raise AdjointError unless the pull-back, Taichi's if `automatic`, fills its outputs and is the derivative."""
    finite = torch.isfinite(bench.step(points.states, points.controls)).all(1)
    # A point more is worth less than all components of those before it.
    whole = int(_SECONDS / _seconds(bench, points)) * bench.batch // (6 * (bench.n + bench.m))
    at = points.some(finite, min(_points_in_time(bench, points), max(POINTS, whole)))
    states, controls, given = points.states[at], points.controls[at], points.given[at]
    if not len(at):
        warnings.warn(
            f"No state was found at which a step of system {bench.name!r} is finite, so its adjoint is unchecked; "
            "hand states to it as typical_states.",
            EvenflowWarning,
            stacklevel=2,
        )
        return
    weights = _draw(3, len(at), bench.n)
    check_filled(bench, states, controls)
    comparison = Comparison(bench.step, bench.pull_back, states, controls, weights)
    departures = comparison.departures(_affordable(bench, points, len(at)))
    # Where nothing arrives a path is lost, which says more than a sum with a part missing.
    warned = False
    for found in sorted(departures, key=lambda at: at.analytic != 0):
        warned = _tell(found, bench, states, controls, bool(given[found.row]), automatic, warned)


def check_filled(bench: Bench, states: torch.Tensor, controls: torch.Tensor) -> None:
    """AdjointError unless `adjoint` is assigned and `cotangent` added to, whatever they hold."""
    weights = _draw(3, len(states), bench.n)
    held = [_draw(11, bench.batch, size) + 2.0 for size in (bench.n, bench.m)]
    contents = [held, [part + 1.0 for part in held]]
    (a, c), (other_a, other_c) = (bench.pull_back(states, controls, weights, (held[0], held[1])) for held in contents)
    subject = f"the pull_back kernel of system {bench.name!r}"
    left, added = _leftovers(a, other_a, [held[0] for held in contents], bench.batch)
    wrong = left if left is not None else added
    if wrong is None:
        differs = ~same(a, other_a, _tolerance(a)).all(0)
        wrong = _first(differs) if differs.any() else None
    if wrong is not None:
        how = "left as it was" if left is not None else "that depends on it"
        raise AdjointError(
            f"Expected {subject} to assign adjoint whatever it held before, got adjoint"
            f"{element(wrong, bench.state_shape)} {how}; assign it with =."
        )
    rows = torch.arange(len(c), device=c.device) % bench.batch
    pulled, other = c - contents[0][1][rows], other_c - contents[1][1][rows]
    # What is lost is all of the 1 between the two; a long sum onto another number rounds otherwise by far less.
    differs = ~same(pulled, other, 0.25 + 1e-3 * pulled.abs()).all(0)
    if differs.any():
        raise AdjointError(
            f"Expected {subject} to add to cotangent, got cotangent{element(_first(differs), bench.control_shape)} "
            "that loses what it held before; write += instead of =."
        )


def _tell(found: Departure, bench: Bench, states, controls, given: bool, automatic: bool, warned: bool) -> bool:
    """Raise what was found, or warn once of a state that the user may never meet; whether a warning was given."""
    name = component(found.index, bench.state_shape, bench.control_shape)
    numbers = [f"{value:.3g}" for value in (*states[found.row].tolist()[:6], *controls[found.row].tolist()[:3])]
    place = f"near [{', '.join(numbers)}{', …' if bench.n > 6 or bench.m > 3 else ''}]"
    if math.isfinite(found.analytic):
        hint = "mend the pull_back kernel, where ef.gradcheck shows every component"
        if automatic and found.analytic == 0:
            hint = (
                "what passes through a field or an integer has no gradient, so keep it in locals or write a pull_back"
            )
        elif automatic:
            hint = "Taichi loses a part of it, so write loops and branches otherwise or write a pull_back kernel"
        raise AdjointError(
            f"Expected the adjoint of system {bench.name!r} to be the derivative of its step, got {found.analytic:.6g} "
            f"for {name} where central differences give {found.numeric:.6g}, {place}; {hint}."
        )
    sentence = (
        f"Expected the adjoint of system {bench.name!r} to be finite where its step is, got {found.analytic} for "
        f"{name} {place}; roots, norms and quotients need their guard inside, as in sqrt(max(x, 1e-12))."
    )
    if given or (math.isfinite(found.numeric) and not found.kink):
        raise AdjointError(sentence)
    if not warned:
        warnings.warn(sentence, EvenflowWarning, stacklevel=2)
    return True


def _seconds(bench: Bench, points: Points | Given) -> float:
    """What one launch of the step takes of a processor, whatever else the machine is doing."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        bench.step(points.states[:1], points.controls[:1])
        taken.append(time.process_time() - started)
    return max(min(taken), 1e-9)


def _points_in_time(bench: Bench, points: Points | Given) -> int:
    """How many of the points are tried: as many as the time reaches for, and the first unless a launch is slow."""
    launch, count = _seconds(bench, points), len(points.states)
    least = POINTS + _GIVEN if launch < _SLOW else 1
    return min(count, max(least, int(_SECONDS / launch / _PASSES) * bench.batch))


def _affordable(bench: Bench, points: Points, count: int) -> list[int] | None:
    """The components to be compared at `count` points: all that fit the time, else a random choice."""
    fits = int(_SECONDS / _seconds(bench, points)) * bench.batch // (6 * count)
    if fits >= bench.n + bench.m:
        return None
    fits = max(fits, _LEAST_COMPONENTS)
    generator = torch.Generator().manual_seed(4)
    chosen = [torch.randperm(size, generator=generator)[: max(1, fits // 2)] for size in (bench.n, bench.m)]
    return [*chosen[0].tolist(), *(bench.n + chosen[1]).tolist()]


def _leftovers(found, other, contents, batch: int) -> tuple[int | None, int | None]:
    """The first component that is left as it was, and the first that is added to, from runs into two contents."""
    rows = torch.arange(len(found), device=found.device) % batch
    before = [content[rows] for content in contents]
    moved = before[0] - before[1]
    left = (found == before[0]) & (other == before[1])
    rounding = 8 * torch.finfo(found.dtype).eps * torch.maximum(found.abs(), other.abs())
    added = (((found - other) - moved).abs() <= rounding) & (4 * rounding < moved.abs())
    # What adds nothing at one point, such as zero, is left as it was there.
    adds = added.any(0) & (added & ~left).any(0)
    leaves = left.any(0) & ~adds
    return _first(leaves) if leaves.any() else None, _first(adds) if adds.any() else None


def _draw(seed: int, *shape: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype=runtime.current().dtype, device=runtime.current().device)


def _tolerance(values: torch.Tensor) -> torch.Tensor:
    """How far two runs may lie apart in each component: nothing in a child, where one thread adds in one order."""
    if available():
        return torch.zeros_like(values[0])
    return 256 * torch.finfo(values.dtype).eps * values.nan_to_num(0.0, 0.0, 0.0).abs().amax(0)


def _apart(values: torch.Tensor) -> torch.Tensor:
    """How far equal samples at different places may lie apart in each component: as lanes may round otherwise."""
    size = values.nan_to_num(0.0, 0.0, 0.0).abs().amax(0)
    return math.sqrt(torch.finfo(values.dtype).eps) * size


def _first(which: torch.Tensor) -> int:
    return int(which.nonzero()[0])

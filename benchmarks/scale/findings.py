"""What the measurements of a scaling study amount to: exponents, costs of a pair, ratios to peers, goals."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.apart import DONE
from benchmarks.peers.peer import OURS
from benchmarks.scale.cases import Case, case_named
from benchmarks.scale.study import Record
from engine.memory import parse_bytes

PARTS = {"step": "forward_ms", "adjoint": "adjoint_ms"}
STEEPEST = 1.1
COMPARED_PARTICLES = 4000
SPEEDUPS = {"JAX": 10.0, "JAX in blocks": 10.0, "torch eager": 40.0}
# One float32 for every forty pairs: far below what any list of pairs takes, above what measuring memory can tell.
BYTES_PER_PAIR = 0.1


@dataclass(frozen=True)
class Goal:
    """A figure beside what it should be.

    Attributes:
        what: the figure, in words.
        measured: its value.
        bound: what it should be at most, or at least if `larger` is better.
    """

    what: str
    measured: float
    bound: float
    larger: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.larger else self.measured <= self.bound


@dataclass(frozen=True)
class Fit:
    """cost = constant · N^slope, least squares of the logarithms.

    Attributes:
        slope: with its standard error.
        sizes: how many sizes it is fitted to.
    """

    slope: float
    error: float
    sizes: int


def fit(particles: Sequence[int], cost: Sequence[float]) -> Fit | None:
    """The exponent at which `cost` grows with N; None below three sizes."""
    if len(particles) < 3:
        return None
    line: Any = stats.linregress([math.log(n) for n in particles], [math.log(value) for value in cost])
    return Fit(float(line.slope), float(line.stderr), len(particles))


def steps_of(found: Sequence[Record], system: str, side: str = OURS) -> list[Record]:
    """Finished measurements of a step, by N."""
    chosen = [record for record in found if record["kind"] == "step" and record["status"] == DONE]
    chosen = [record for record in chosen if record["system"] == system and record["side"] == side]
    return sorted(chosen, key=lambda record: record["particles"])


def milliseconds(record: Record, part: str) -> float:
    """Median ms of a "step" or its "adjoint"."""
    return record[PARTS[part]]["median"]


def per_pair(record: Record, part: str) -> float:
    """ns for each pair."""
    return milliseconds(record, part) * 1e6 / record["pairs"]


def memory_taken(record: Record) -> int:
    """Bytes of a step and its adjoint together, beyond the interpreter's own."""
    return record["forward_bytes"] + record["adjoint_bytes"]


def fits(found: Sequence[Record]) -> dict[str, dict[str, Fit]]:
    """For each system the exponents of our step and adjoint, where there are sizes enough."""
    result: dict[str, dict[str, Fit]] = {}
    for system in systems_of(found):
        steps = steps_of(found, system)
        for part in PARTS:
            line = fit([record["particles"] for record in steps], [milliseconds(record, part) for record in steps])
            if line is not None:
                result.setdefault(system, {})[part] = line
    return result


def systems_of(found: Sequence[Record]) -> list[str]:
    """Systems whose steps were measured, in order."""
    return list(dict.fromkeys(record["system"] for record in found if record["kind"] == "step"))


def goals(found: Sequence[Record]) -> list[Goal]:
    """Every goal that something was measured for."""
    result = []
    for system in systems_of(found):
        case = case_named(system)
        result += [*_growth(case, found), *_pairs(case, found), *_speedups(case, found), *_pair_memory(case, found)]
    for record in found:
        if record["kind"] == "horizon" and record["status"] == DONE:
            what = f"{case_named(record['system']).title}, {record['particles']:,} x {record['horizon']:,} steps: MiB"
            result.append(Goal(what, record["peak_bytes"] / 2**20, parse_bytes(record["memory"]) / 2**20))
    return result


def _growth(case: Case, found: Sequence[Record]) -> Iterator[Goal]:
    if not case.all_pairs:
        for part, line in fits(found).get(case.name, {}).items():
            yield Goal(f"{case.title}: exponent of the {part} in N", line.slope, STEEPEST)


def _pairs(case: Case, found: Sequence[Record]) -> Iterator[Goal]:
    steps = steps_of(found, case.name)
    if case.ns_per_pair is not None and steps:
        for part, bound in zip(PARTS, case.ns_per_pair, strict=True):
            what = f"{case.title}, {steps[-1]['particles']:,} particles: ns for each pair, {part}"
            yield Goal(what, per_pair(steps[-1], part), bound)


def _speedups(case: Case, found: Sequence[Record]) -> Iterator[Goal]:
    ours = [record for record in steps_of(found, case.name) if record["particles"] == COMPARED_PARTICLES]
    for side, bound in SPEEDUPS.items():
        for theirs in steps_of(found, case.name, side):
            if ours and theirs["particles"] == COMPARED_PARTICLES:
                for part in PARTS:
                    ratio = milliseconds(theirs, part) / milliseconds(ours[0], part)
                    what = f"{case.title}, {COMPARED_PARTICLES:,} particles: {side} over ours, {part}"
                    yield Goal(what, ratio, bound, larger=True)


def _pair_memory(case: Case, found: Sequence[Record]) -> Iterator[Goal]:
    steps = steps_of(found, case.name)
    if case.all_pairs and len(steps) > 1:
        first, last = steps[0], steps[-1]
        more = (last["adjoint_bytes"] - first["adjoint_bytes"]) / (last["pairs"] - first["pairs"])
        yield Goal(f"{case.title}: bytes of the adjoint for each further pair", more, BYTES_PER_PAIR)

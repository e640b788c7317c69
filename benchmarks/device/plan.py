"""What is measured on a device, in which order: parts that each fit ten minutes and need none of the others."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parts import Part

SECONDS = 600.0
"""After which a part is stopped."""
_FILES_A_PART = 4
_TESTS = Path(__file__).resolve().parents[2] / "tests"
_SMALL_PARTICLES = {"swarm": {"evaders": 200, "horizon": 5}, "fluid": {"particles": 200, "horizon": 2}}


@dataclass(frozen=True)
class Sizes:
    """What the parts are measured with.

    Attributes:
        members: of ensembles of cart-pole, with `horizon` steps.
        particles: of swarm and fluid.
        rounds: turns of four updates.
        systems: that are compared with the CPU; empty for all that are registered.
        tests: files of the marked suite; None for all that have marked tests, where there are any.
        side, bytes: of the matrices and the copies that show what the device can do.
    """

    members: tuple[int, ...] = (1, 64, 1024)
    horizon: int = 100
    particles: tuple[int, ...] = (100_000, 1_000_000)
    rounds: int = 10
    systems: tuple[str, ...] = ()
    tests: tuple[str, ...] | None = None
    side: int = 8192
    bytes: int = 2**30


def parts_of(sizes: Sizes) -> list[Part]:
    """All parts in order: first whether the device is right, then what it costs, then what share of it is used."""
    found = [Part("launches", "Launches", "launches")]
    files = marked_tests() if sizes.tests is None else list(sizes.tests)
    for precision in ("float32", "float64"):
        for index in range(math.ceil(len(files) / _FILES_A_PART)):
            chosen = files[index * _FILES_A_PART : (index + 1) * _FILES_A_PART]
            name = f"suite {precision} {index + 1}"
            found.append(Part(name, "Marked tests", "suite", {"precision": precision, "files": chosen}))
    found.append(Part("launch cost", "Cost of a launch", "launch_cost"))
    found.append(Part("parity", "Systems compared with the CPU", "parity", {"systems": list(sizes.systems)}))
    for task, options in {"cart-pole": {"horizon": sizes.horizon}, **_SMALL_PARTICLES}.items():
        arguments = {"task": task, "options": options}
        found.append(Part(f"determinism {task}", "Trainings repeated to the bit", "determinism", arguments))
    for count in sizes.members:
        arguments = {"members": count, "horizon": sizes.horizon, "rounds": sizes.rounds}
        found.append(Part(f"cart-pole {count}", "An update of cart-pole", "updates", arguments))
    for system in ("swarm-cells", "fluid"):
        for count in sizes.particles:
            arguments = {"system": system, "particles": count}
            found.append(Part(f"{system} {count}", "A step of particles and its adjoint", "particles", arguments))
    found.append(Part("ceilings", "What the device can do", "ceilings", {"side": sizes.side, "bytes": sizes.bytes}))
    return found


def marked_tests() -> list[str]:
    """Files that have tests for CUDA; none where Evenflow is installed without its tests."""
    mark = re.compile(r"mark\.(cuda|card)\b")
    return [str(path) for path in sorted(_TESTS.glob("test_*.py")) if mark.search(path.read_text(encoding="utf-8"))]

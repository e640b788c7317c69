"""What is measured beside peers, in which order, and what was aimed at."""

import math
from dataclasses import dataclass

from benchmarks.parts import Part
from engine.checks import whole
from engine.runtime import cores

SECONDS = 900.0
"""After which a part is stopped."""
GRADIENTS = ("R", "M", "C")
START, ALONE, TOGETHER, PARTICLES = "Start", "One training, one core", "Many trainings", "Particles"


@dataclass(frozen=True)
class Sizes:
    """What the parts are measured with.

    Attributes:
        rounds: turns of every side.
        members: of the ensembles of cart-pole that the figure shows.
        together: members of the ensembles of all tasks.
        all_pairs: particles where every pair interacts.
        cells: particles where those within a radius do.
        horizon: steps of all tasks; None for their own.
    """

    rounds: int = 20
    members: tuple[int, ...] = (1, 8, 40, 128, 512)
    together: int = 40
    all_pairs: int = 4000
    cells: int = 10_000
    horizon: int | None = None

    def __post_init__(self):
        whole("rounds of at least 1", self.rounds)
        whole("members of at least 2 beside peers", self.together, 2)


def parts_of(sizes: Sizes) -> list[Part]:
    """All parts, the short ones first."""
    options = {} if sizes.horizon is None else {"horizon": sizes.horizon}
    everything, rounds = cores(), {"rounds": sizes.rounds}
    found = [Part("import", START, "imports"), Part("first update of cart-pole", START, "firsts", {"options": options})]
    for task in ("cart-pole", "guidance", "quantum"):
        found.append(Part(task, ALONE, "alone", {"task": task, "options": options, **rounds}))
    for system in ("swarm", "n-body", "n-body-3d", "swarm-cells", "fluid", "fluid-3d"):
        count = sizes.cells if system.endswith("cells") or system.startswith("fluid") else sizes.all_pairs
        for threads in dict.fromkeys((1, everything)):
            arguments = {"system": system, "particles": count, "threads": threads, **rounds}
            found.append(Part(f"{system}, {count:,}, {_cores(threads)}", PARTICLES, "particles", arguments))
    tasks = {
        "cart-pole, 4 poles": ("cart-pole", {"poles": 4}),
        "guidance": ("guidance", {}),
        "quantum": ("quantum", {}),
    }
    for name, (task, extra) in tasks.items():
        found.append(_ensemble(name, task, options | extra, sizes.together, everything, sizes.rounds))
    for threads in dict.fromkeys((1, everything)):
        for count in sorted({sizes.together, *sizes.members}) if threads == everything else (sizes.together,):
            found.append(_ensemble("cart-pole", "cart-pole", options, count, threads, sizes.rounds))
    return found


def _ensemble(name: str, task: str, options: dict[str, int], members: int, threads: int, rounds: int) -> Part:
    arguments = {"task": task, "options": options, "members": members, "threads": threads, "rounds": rounds}
    return Part(f"{name}, {members} members, {_cores(threads)}", TOGETHER, "together", arguments)


def _cores(count: int) -> str:
    return f"{count} core" if count == 1 else f"{count} cores"


def goal(part: Part, label: str, peer: str) -> float:
    """What our time over a peer's should be at most; infinite without a goal."""
    if part.section == ALONE and peer == "JAX, jax.grad":
        goals = {"cart-pole": (0.8, 0.5), "guidance": (0.8, 0.6), "quantum": (0.35, 0.25)}
        return dict(zip("RC", goals[part.arguments["task"]], strict=True)).get(label, math.inf)
    if part.section == ALONE and peer == "JAX, by hand":
        return 1.5
    if part.section == TOGETHER and peer == "JAX, jax.grad" and part.arguments["members"] == Sizes.together:
        return 0.2 if (part.arguments["task"], label) == ("cart-pole", "C") else 0.3
    if part.section == PARTICLES and peer == "JAX in blocks":
        return 0.2  # 0.125 with AVX-512
    return 1.0 if part.section == PARTICLES and peer in ("Warp", "jax-md") else math.inf

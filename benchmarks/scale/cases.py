"""The particle systems that are measured: one entry each; and every registered system, against samples.

A system is added by one more `Case`: how to build it with N particles, how to draw a start, how to count the pairs
that interact. All draws come from one generator, so that every side starts from the same particles; particles that are
near each other are anywhere in memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from benchmarks.peers.particles import fluid_step, n_body_step, swarm_step
from benchmarks.peers.peer import PeerStep
from engine import SettingError, System
from engine.checks import perhaps
from engine.particles.neighbours import Neighbours
from engine.systems import SYSTEMS, Fluid, NBody, Swarm
from policies import MLP, Moments, Policy

DRIVERS = 8
THRUSTERS = 8
JETS = 4
# Neighbours within the radius at this density: 25.
RADIUS, DENSITY = 0.5, 32.0
ALL_PAIRS_SIZES = (1000, 2000, 4000, 8000, 16_000, 30_000)
CELL_SIZES = (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
PLANAR_GOALS = (0.5, 1.0)
SAMPLES, MOST_SAMPLES = (64, 256, 1024, 4096, 16_384), 10_000_000


@dataclass(frozen=True)
class Case:
    """A system to measure.

    Attributes:
        name: on the command line and in tables.
        title: in a few words, for people.
        sizes: numbers of particles by default.
        largest: number of particles beyond which it is not tried.
        build: the system of N particles.
        draw: a state [1, *state_shape] and a control [1, *control_shape] in float64 from a seeded generator.
        pairs: how many ordered pairs (i, k), i ≠ k, interact in a state [1, *state_shape]; None where none are counted.
        all_pairs: whether every pair interacts; otherwise the cost should grow as N.
        peer_step: the same step for JAX and torch, None where there is no peer.
        policy: the controller of long rollouts.
        without: names of the peers that are not measured beside it.
        ns_per_pair: what a step and its adjoint should cost at most for each pair, on 2 cores; None without a goal.
    """

    name: str
    title: str
    sizes: tuple[int, ...]
    largest: int
    build: Callable[[int], System]
    draw: Callable[[Any, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
    pairs: Callable[[Any, torch.Tensor], int] | None
    all_pairs: bool
    peer_step: PeerStep | None
    policy: Callable[[System], Policy]
    ns_per_pair: tuple[float, float] | None = None
    without: tuple[str, ...] = ()
    counted: ClassVar[str] = "particles"
    """What its sizes are numbers of."""

    def count(self, system: System, state: torch.Tensor) -> int | None:
        """How many pairs interact, where they are counted."""
        return None if self.pairs is None else self.pairs(system, state)

    def start(self, system: System, particles: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """State, control and an adjoint of the next state, the same for every side, in float32."""
        generator = torch.Generator().manual_seed(0)
        state, control = self.draw(system, generator)
        adjoint = torch.randn(state.shape, generator=generator, dtype=torch.float64)
        return tuple(tensor.to(torch.float32).contiguous() for tensor in (state, control, adjoint))  # type: ignore[return-value]


class SamplesCase(Case):
    """A registered system as `evenflow check` builds it, measured against the number of samples in a batch."""

    counted = "samples"

    def start(self, system: System, particles: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As of a case, with a sample for each of so many "particles"."""
        generator = torch.Generator().manual_seed(0)
        state, control = draw_samples(system, generator, particles)
        return state, control, torch.randn(state.shape, generator=generator)


def case_named(name: str) -> Case:
    """The case of this name, or that of the registered system; SettingError if there is neither."""
    for case in CASES:
        if case.name == name:
            return case
    if name not in SYSTEMS:
        known = dict.fromkeys([*(case.name for case in CASES), *SYSTEMS])
        raise SettingError(f"Expected systems among {', '.join(known)}, got {name!r}{perhaps(name, known)}.")
    make = SYSTEMS[name]
    return SamplesCase(
        name, f"{name}, samples", SAMPLES, MOST_SAMPLES, lambda samples: make(), draw_samples, None, False, None, dense
    )


def draw_samples(system: System, generator: torch.Generator, samples: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The system's own samples, with controls between -1/2 and 1/2; float32."""
    state = system.sample(samples, generator).to(torch.float32)
    return state, torch.rand(samples, *system.control_shape, generator=generator) - 0.5


def dense(system: System) -> MLP:
    """A small dense network for any system."""
    return MLP(system.state_shape, system.control_shape, hidden=(32,))


def build_swarm(particles: int, radius: float | None) -> Swarm:
    """A flock that keeps its distance; without a radius the weight of flocking is shared among all."""
    evaders = particles - DRIVERS
    flocking = 0.8 / evaders if radius is None else 0.2
    return Swarm(
        DRIVERS, evaders, 0.01, radius, flocking=flocking, mean_centre=True, reversed_flocking=True
    )  # fmt: skip


def draw_swarm(system: Swarm, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform in a square whose area grows with N, slow; drivers in its middle."""
    side = math.sqrt(system.particles / DENSITY)
    state = torch.rand(1, 4, system.particles, generator=generator, dtype=torch.float64) - 0.5
    state[:, :2] *= side
    state[:, :2, : system.drivers] *= 2.0 / side
    state[:, 2:] *= 0.2
    control = 0.1 * torch.randn(1, 2, system.drivers, generator=generator, dtype=torch.float64)
    return state, control


def swarm_pairs(system: Swarm, state: torch.Tensor) -> int:
    """Drivers with everyone, evaders with the evaders within the radius."""
    drivers, evaders = system.drivers, system.evaders
    with_drivers = drivers * (drivers - 1) + 2 * drivers * evaders
    if system.radius is None:
        return with_drivers + evaders * (evaders - 1)
    positions = state[:, :2, drivers:].contiguous()
    return with_drivers + Neighbours(2, evaders, system.radius).count(positions)


def build_n_body(particles: int, dim: int) -> NBody:
    """Equal bodies of total mass 1, the first of them with thrusters."""
    return NBody([1.0 / particles] * particles, range(THRUSTERS), dim, dt=0.02)


def draw_n_body(system: NBody, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform in a cube of side 2, slow."""
    state = 2.0 * torch.rand(1, *system.state_shape, generator=generator, dtype=torch.float64) - 1.0
    state[:, system.dim :] *= 0.1
    return state, 0.1 * torch.randn(1, *system.control_shape, generator=generator, dtype=torch.float64)


def n_body_pairs(system: NBody, state: torch.Tensor) -> int:
    """Every body with every other."""
    return system.bodies * (system.bodies - 1)


def build_fluid(particles: int, dim: int) -> Fluid:
    """A block in the middle of a box that leaves room around it, of spacing 1."""
    size = (particles ** (1 / dim) + 10.0,) * dim
    return Fluid(particles, JETS, size, 1.0, sound_speed=20.0, viscosity=0.05, jet_radius=5.0)


def draw_fluid(system: Fluid, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A lattice a tenth too dense, every particle a little off its place and slow; particles in no order."""
    count = math.ceil(round(system.particles ** (1 / system.dim), 6))
    axes = [torch.arange(count, dtype=torch.float64)] * system.dim
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)[:, : system.particles]
    places = places[:, torch.randperm(system.particles, generator=generator)]
    draw = torch.rand(2, *places.shape, generator=generator, dtype=torch.float64) - 0.5
    state = torch.full((1, *system.state_shape), 0.5 * system.size[0], dtype=torch.float64)
    state[0, : system.dim, system.jets :] = 5.0 + 0.9 * (places + 0.2 * draw[0])
    state[0, system.dim :] = 0.0
    state[0, system.dim :, system.jets :] = 0.2 * draw[1]
    return state, torch.randn(1, *system.control_shape, generator=generator, dtype=torch.float64)


def fluid_pairs(system: Fluid, state: torch.Tensor) -> int:
    """Particles within the kernel's radius of each other."""
    places = state[:, : system.dim, system.jets :].contiguous()
    return Neighbours(system.dim, system.particles, system.radius).count(places)


def crowd_policy(system: System, actuators: range) -> Moments:
    """Means and spreads of the crowd into a small network whose first controls are 0."""
    return Moments(system.state_shape, system.control_shape, (), zero_last=True, actuators=actuators)


_swarm_policy = partial(crowd_policy, actuators=range(DRIVERS))
_fluid_policy = partial(crowd_policy, actuators=range(JETS))
_n_body_policy = partial(crowd_policy, actuators=range(THRUSTERS))

# Peers that do nothing else than others where every pair interacts, or where only neighbours do.
_OF_NEIGHBOURS, _OF_ALL_PAIRS = ("jax-md",), ("JAX in blocks",)

CASES = (
    Case(
        "swarm", "swarm, all pairs", ALL_PAIRS_SIZES, 30_000, partial(build_swarm, radius=None), draw_swarm,
        swarm_pairs, True, swarm_step, _swarm_policy, PLANAR_GOALS, _OF_NEIGHBOURS,
    ),
    Case(
        "swarm-cells", "swarm, cells", CELL_SIZES, 10_000_000, partial(build_swarm, radius=RADIUS), draw_swarm,
        swarm_pairs, False, swarm_step, _swarm_policy, without=_OF_ALL_PAIRS,
    ),
    Case(
        "fluid", "fluid in 2-D, cells", CELL_SIZES, 10_000_000, partial(build_fluid, dim=2), draw_fluid, fluid_pairs,
        False, fluid_step, _fluid_policy, without=_OF_ALL_PAIRS,
    ),
    Case(
        "fluid-3d", "fluid in 3-D, cells", CELL_SIZES, 10_000_000, partial(build_fluid, dim=3), draw_fluid, fluid_pairs,
        False, fluid_step, _fluid_policy, without=_OF_ALL_PAIRS,
    ),
    Case(
        "n-body", "n-body in 2-D", ALL_PAIRS_SIZES, 30_000, partial(build_n_body, dim=2), draw_n_body,
        n_body_pairs, True, n_body_step, _n_body_policy, PLANAR_GOALS, _OF_NEIGHBOURS,
    ),
    Case(
        "n-body-3d", "n-body in 3-D", ALL_PAIRS_SIZES, 30_000, partial(build_n_body, dim=3), draw_n_body,
        n_body_pairs, True, n_body_step, _n_body_policy, without=_OF_NEIGHBOURS,
    ),
)  # fmt: skip

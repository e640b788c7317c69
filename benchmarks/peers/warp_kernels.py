"""The kernels of `benchmarks.peers.warp_steps`, by system; only there where Warp is.

Each maker takes a system, the type of a vector [dim], and arrays of vectors: state and next state [2, N] (places and
velocities), control [1, actuators]; and returns what launches one step. Kernels of a dimension are modules of their
own, which Warp finds in its cache again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import warp as wp

from benchmarks.peers.particles import TINY
from engine.particles.herding import DRIVER_DAMPING, EVADER_DAMPING, SOFTENING
from engine.systems import Fluid, NBody, Swarm
from engine.systems.fluid import lattice_sum
from engine.systems.guidance import FLIGHT, SEPARATION, SPACING

Step = Callable[[], None]
# Of a hash grid, along each axis of the plane and of space; beyond them its cells are shared.
_MOST_CELLS = {2: 1024, 3: 128}
_TINY = wp.constant(TINY)


def n_body(system: NBody, vector: Any, state: Any, control: Any, following: Any) -> Step:
    """Every body sums over all others."""

    @wp.kernel(module="unique")
    def kick(
        state: wp.array2d(dtype=vector),
        half: wp.array2d(dtype=vector),
        control: wp.array2d(dtype=vector),
        following: wp.array2d(dtype=vector),
        thrusters: int,
        pull: float,
        softening: float,
        dt: float,
    ):
        i = wp.tid()
        force = vector()
        for k in range(half.shape[1]):
            r = half[0, i] - half[0, k]
            inverse = 1.0 / wp.sqrt(wp.dot(r, r) + softening * softening)
            force += (pull * inverse * inverse * inverse) * r
        if i < thrusters:
            force += control[0, i]
        velocity = state[1, i] + dt * force
        following[0, i] = half[0, i] + 0.5 * dt * velocity
        following[1, i] = velocity

    drift, half = drift_of(vector), _vectors(vector, (1, system.bodies))
    pull, softening = -system.gravity * system.masses[0], system.softening

    def step() -> None:
        _launch(drift, system.bodies, state, half, system.dt)
        _launch(kick, system.bodies, state, half, control, following, len(system.thrusters), pull, softening, system.dt)

    return step


@wp.func
def pushed(r: wp.vec2, near: float, far: float):
    """(near/d² + far/d) r, d = softening + |r|."""
    inverse = 1.0 / (SOFTENING + wp.sqrt(wp.dot(r, r) + _TINY))
    return inverse * (far + near * inverse) * r


@wp.func
def flocked(r: wp.vec2, near: float, far: float, radius: float):
    """The same within the radius, by a smooth window."""
    s = wp.clamp(4.0 / 3.0 * (1.0 - wp.dot(r, r) / (radius * radius)), 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s) * pushed(r, near, far)


@wp.kernel
def find_centre(state: wp.array2d(dtype=wp.vec2), centre: wp.array(dtype=wp.vec2), drivers: int, share: float):
    i = wp.tid()
    wp.atomic_add(centre, 0, share * state[0, drivers + i])


@wp.kernel
def drive(
    state: wp.array2d(dtype=wp.vec2),
    centre: wp.array(dtype=wp.vec2),
    control: wp.array2d(dtype=wp.vec2),
    following: wp.array2d(dtype=wp.vec2),
    drivers: int,
    dt: float,
):
    i = wp.tid()
    r = state[0, i] - centre[0]
    c = control[0, i]
    force = c[0] * r + c[1] * wp.vec2(-r[1], r[0]) - DRIVER_DAMPING * state[1, i]
    for k in range(drivers):
        force += pushed(state[0, i] - state[0, k], SEPARATION, 0.0)
    following[0, i] = state[0, i] + dt * state[1, i]
    following[1, i] = state[1, i] + dt * force


@wp.kernel
def flee(
    state: wp.array2d(dtype=wp.vec2),
    flock: wp.array(dtype=wp.vec2),
    following: wp.array2d(dtype=wp.vec2),
    drivers: int,
    dt: float,
):
    i = drivers + wp.tid()
    force = flock[i - drivers] - EVADER_DAMPING * state[1, i]
    for k in range(drivers):
        force += pushed(state[0, i] - state[0, k], FLIGHT, 0.0)
    following[0, i] = state[0, i] + dt * state[1, i]
    following[1, i] = state[1, i] + dt * force


@wp.kernel
def flock_with_all(
    state: wp.array2d(dtype=wp.vec2), flock: wp.array(dtype=wp.vec2), drivers: int, near: float, far: float
):
    i = wp.tid()
    force = wp.vec2()
    for k in range(drivers, state.shape[1]):
        force += pushed(state[0, drivers + i] - state[0, k], near, far)
    flock[i] = force


@wp.kernel
def flock_in_cells(
    state: wp.array2d(dtype=wp.vec2),
    points: wp.array(dtype=wp.vec3),
    grid: wp.uint64,
    flock: wp.array(dtype=wp.vec2),
    drivers: int,
    near: float,
    far: float,
    radius: float,
):
    i = wp.tid()
    force = wp.vec2()
    for k in wp.hash_grid_query(grid, points[i], radius):
        force += flocked(state[0, drivers + i] - state[0, drivers + k], near, far, radius)
    flock[i] = force


def swarm(system: Swarm, vector: Any, state: Any, control: Any, following: Any) -> Step:
    """Drivers see everyone, evaders all others or those within the radius."""
    drivers, evaders, dt, radius = system.drivers, system.evaders, system.dt, system.radius
    near, far = SPACING * system.flocking, -system.flocking
    centre, flock = _vectors(wp.vec2, 1), _vectors(wp.vec2, evaders)
    find = None if radius is None else _finder(state, drivers, radius)

    def step() -> None:
        centre.zero_()
        _launch(find_centre, evaders, state, centre, drivers, 1.0 / evaders)
        _launch(drive, drivers, state, centre, control, following, drivers, dt)
        if find is None:
            _launch(flock_with_all, evaders, state, flock, drivers, near, far)
        else:
            points, grid = find(state)
            _launch(flock_in_cells, evaders, state, points, grid.id, flock, drivers, near, far, radius)
        _launch(flee, evaders, state, flock, following, drivers, dt)

    return step


def drift_of(vector: Any) -> Any:
    """Half a step of all bodies."""

    @wp.kernel(module="unique")
    def drift(state: wp.array2d(dtype=vector), half: wp.array2d(dtype=vector), dt: float):
        i = wp.tid()
        half[0, i] = state[0, i] + 0.5 * dt * state[1, i]

    return drift


def pressures_of(vector: Any) -> Any:
    """Pressure over density squared, of the densities that those within the radius make."""

    @wp.kernel(module="unique")
    def find_pressures(
        half: wp.array2d(dtype=vector),
        points: wp.array(dtype=wp.vec3),
        grid: wp.uint64,
        pressures: wp.array(dtype=float),
        jets: int,
        radius: float,
        weight: float,
        stiffness: float,
    ):
        i = wp.tid()
        total = float(0.0)  # noqa: UP018 Warp's sign of what a loop changes
        for k in wp.hash_grid_query(grid, points[i], radius):
            r = half[0, jets + i] - half[0, jets + k]
            distance = wp.sqrt(wp.dot(r, r) + _TINY)
            w = wp.max(1.0 - distance / radius, 0.0)
            total += w * w * w * w * (1.0 + 4.0 / radius * distance)
        z = weight * total
        pressures[i] = wp.max(stiffness * (z * z * z * z * z - 1.0 / (z * z)), 0.0)

    return find_pressures


def forces_of(vector: Any) -> Any:
    """What those within the radius do to a particle."""

    @wp.kernel(module="unique")
    def find_forces(
        state: wp.array2d(dtype=vector),
        half: wp.array2d(dtype=vector),
        points: wp.array(dtype=wp.vec3),
        grid: wp.uint64,
        pressures: wp.array(dtype=float),
        forces: wp.array(dtype=vector),
        jets: int,
        radius: float,
        slope: float,
        thickness: float,
    ):
        i = wp.tid()
        force = vector()
        for k in wp.hash_grid_query(grid, points[i], radius):
            r = half[0, jets + i] - half[0, jets + k]
            squared = wp.dot(r, r)
            w = wp.max(1.0 - wp.sqrt(squared + _TINY) / radius, 0.0)
            friction = wp.dot(r, state[1, jets + i] - state[1, jets + k]) / (squared + radius * radius / 400.0)
            force += (slope * (pressures[i] + pressures[k] - thickness * friction) * w * w * w) * r
        forces[i] = force

    return find_forces


def kick_of(vector: Any) -> Any:
    """The jets' pushes, the kick and the second half step; jets keep their velocities."""

    @wp.kernel(module="unique")
    def kick(
        state: wp.array2d(dtype=vector),
        half: wp.array2d(dtype=vector),
        forces: wp.array(dtype=vector),
        control: wp.array2d(dtype=vector),
        following: wp.array2d(dtype=vector),
        jets: int,
        down: vector,
        jet_radius: float,
        jet_strength: float,
        dt: float,
    ):
        i = wp.tid()
        force = vector()
        if i >= jets:
            force = forces[i - jets] + down
            for j in range(jets):
                away = half[0, i] - half[0, j]
                left = wp.max(1.0 - wp.dot(away, away) / (jet_radius * jet_radius), 0.0)
                force += (jet_strength * left * left * left) * control[0, j]
        velocity = state[1, i] + dt * force
        following[0, i] = half[0, i] + 0.5 * dt * velocity
        following[1, i] = velocity

    return kick


def fluid(system: Fluid, vector: Any, state: Any, control: Any, following: Any) -> Step:
    """Densities of those within the radius, their forces, then the kick."""
    dim, jets, radius, particles = system.dim, system.jets, system.radius, system.particles
    drift, find_pressures, find_forces, kick = (make(vector) for make in (drift_of, pressures_of, forces_of, kick_of))
    weight = 1.0 / lattice_sum(dim)
    slope, thickness = 20.0 * weight / radius**2, 2.0 * (dim + 2) * system.viscosity
    stiffness, down = system.sound_speed**2 / 7, vector(*[0.0] * (dim - 1), -system.gravity)
    half, forces = _vectors(vector, (1, system.bodies)), _vectors(vector, particles)
    pressures = _vectors(float, particles)
    find = _finder(state, jets, radius)

    def step() -> None:
        _launch(drift, system.bodies, state, half, system.dt)
        points, grid = find(half)
        near = half, points, grid.id, pressures
        _launch(find_pressures, particles, *near, jets, radius, weight, stiffness)
        _launch(find_forces, particles, state, *near, forces, jets, radius, slope, thickness)
        pushes = control, following, jets, down, system.jet_radius, system.jet_strength
        _launch(kick, system.bodies, state, half, forces, *pushes, system.dt)

    return step


def _finder(places: Any, first: int, radius: float) -> Callable[[Any], tuple[Any, Any]]:
    """Points in space [N - first] of the places in row 0 from `first` on, and a hash grid of them, made anew by each
    call."""
    at = places.numpy()[0, first:]
    dim = at.shape[1]
    cells = np.clip(np.ceil(np.ptp(at, axis=0) / radius), 1, _MOST_CELLS[dim]).astype(int)
    grid = wp.HashGrid(*cells, *[1] * (3 - dim), device="cpu")
    points = wp.zeros(len(at), dtype=wp.vec3, device="cpu")

    @wp.kernel(module="unique", enable_backward=False)
    def lift(places: wp.array2d(dtype=places.dtype), points: wp.array(dtype=wp.vec3), first: int):
        i = wp.tid()
        place = places[0, first + i]
        point = wp.vec3()
        for axis in range(wp.static(dim)):
            point[axis] = place[axis]
        points[i] = point

    def find(places: Any) -> tuple[Any, Any]:
        _launch(lift, len(at), places, points, first)
        grid.build(points, radius)
        return points, grid

    return find


def _vectors(kind: Any, shape: Any) -> Any:
    return wp.zeros(shape, dtype=kind, device="cpu", requires_grad=True)


def _launch(kernel: Any, count: int, *arguments: Any) -> None:
    wp.launch(kernel, dim=count, inputs=list(arguments), device="cpu")


OF: dict[type, Callable[..., Step]] = {NBody: n_body, Swarm: swarm, Fluid: fluid}

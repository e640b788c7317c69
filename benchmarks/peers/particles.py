"""Steps of particles as expressions, for any library of arrays `xp`: jax.numpy or torch.

Structure of arrays, float32, one step; how it finds pairs is the peer's own.
"""

import math
from collections.abc import Callable
from typing import Any

from benchmarks.peers.peer import Pairs, weighted_sum
from engine.particles.herding import DRIVER_DAMPING, EVADER_DAMPING, SOFTENING
from engine.systems.fluid import lattice_sum
from engine.systems.guidance import FLIGHT, SEPARATION, SPACING

TINY = 1e-30
# Where those are that are not there: beyond any radius.
_FAR = 1e4


def swarm_step(xp: Any, system: Any, pairs: Pairs) -> Callable[[Any, Any], Any]:
    """`engine.Swarm` with mean_centre and reversed_flocking; evaders see those near them where it has a radius."""
    drivers, dt, flocking, radius = system.drivers, system.dt, system.flocking, system.radius

    def over(near: float, far: float) -> Callable[[Any], Any]:
        def weight(squared: Any) -> Any:
            inverse = 1.0 / (SOFTENING + xp.sqrt(squared + TINY))
            return inverse * (far + near * inverse)

        return weight

    def flock_together(places: Any, weight: Callable[[Any], Any]) -> Any:
        if radius is None:
            return pairs.total(places, places, weight)
        others = pairs.near(places)

        def cut_off(squared: Any) -> Any:
            s = xp.clip(4 / 3 * (1.0 - squared / radius**2), 0.0, 1.0)
            return s * s * (3.0 - 2.0 * s) * weight(squared)

        return weighted_sum(xp, [row[:, None] - others(row, _FAR) for row in places], cut_off)

    def step(state: Any, control: Any) -> Any:
        position, velocity = state[:2], state[2:]
        of_drivers, of_evaders = position[:, :drivers], position[:, drivers:]
        r = of_drivers - of_evaders.mean(1)[:, None]
        push = control[:1] * r + control[1:] * xp.stack([-r[1], r[0]])
        push = push + pairs.total(of_drivers, of_drivers, over(SEPARATION, 0.0))
        push = push - DRIVER_DAMPING * velocity[:, :drivers]
        flock = flock_together(of_evaders, over(SPACING * flocking, -flocking))
        flee = pairs.total(of_evaders, of_drivers, over(FLIGHT, 0.0))
        flock = flock + flee - EVADER_DAMPING * velocity[:, drivers:]
        force = xp.concatenate([push, flock], 1)
        return xp.concatenate([position + dt * velocity, velocity + dt * force], 0)

    return step


def n_body_step(xp: Any, system: Any, pairs: Pairs) -> Callable[[Any, Any], Any]:
    """`engine.NBody` whose first bodies have the thrusters, all bodies of one mass."""
    dim, dt, thrusters, bodies = system.dim, system.dt, len(system.thrusters), system.bodies
    pull, softening = -system.gravity * system.masses[0], system.softening

    def weight(squared: Any) -> Any:
        inverse = 1.0 / xp.sqrt(squared + softening**2)
        return pull * inverse * inverse * inverse

    def step(state: Any, control: Any) -> Any:
        half = state[:dim] + 0.5 * dt * state[dim:]
        rest = xp.zeros((dim, bodies - thrusters), dtype=xp.float32)
        acceleration = pairs.total(half, half, weight) + xp.concatenate([control, rest], 1)
        velocity = state[dim:] + dt * acceleration
        return xp.concatenate([half + 0.5 * dt * velocity, velocity], 0)

    return step


def fluid_step(xp: Any, system: Any, pairs: Pairs) -> Callable[[Any, Any], Any]:
    """`engine.Fluid` whose particles stay a kernel radius away from walls."""
    dim, dt, jets, radius = system.dim, system.dt, system.jets, system.radius
    alpha = {2: 7 / (math.pi * radius**2), 3: 21 / (2 * math.pi * radius**3)}[dim]
    volume = 1.0 / (alpha * lattice_sum(dim))
    thickness = 2.0 * (dim + 2) * system.viscosity

    def positive(values: Any) -> Any:
        return xp.maximum(values, xp.zeros_like(values))

    def step(state: Any, control: Any) -> Any:
        half, velocity = state[:dim] + 0.5 * dt * state[dim:], state[dim:]
        fluid, speed = half[:, jets:], velocity[:, jets:]
        others = pairs.near(fluid)
        r = [row[:, None] - others(row, _FAR) for row in fluid]
        apart = [row[:, None] - others(row, 0.0) for row in speed]
        squared = sum(one * one for one in r)
        distance = xp.sqrt(squared + TINY)
        w = positive(1.0 - distance / radius)
        cubed = w * w * w
        z = volume * alpha * (cubed * w * (1.0 + 4.0 / radius * distance)).sum(1)
        pressure = positive(system.sound_speed**2 / 7 * (z**5 - 1.0 / (z * z)))
        friction = sum(one * other for one, other in zip(r, apart, strict=True)) / (squared + radius**2 / 400)
        stress = (pressure[:, None] + others(pressure, 0.0) - thickness * friction) * cubed
        slope = 20.0 * volume * alpha / radius**2
        acceleration = [slope * (stress * one).sum(1) for one in r]
        acceleration[-1] = acceleration[-1] - system.gravity
        for j in range(jets):
            away = sum((row - row_of_jets[j]) ** 2 for row, row_of_jets in zip(fluid, half[:, :jets], strict=True))
            reach = system.jet_strength * positive(1.0 - away / system.jet_radius**2) ** 3
            acceleration = [one + reach * push[j] for one, push in zip(acceleration, control, strict=True)]
        velocity = xp.concatenate([velocity[:, :jets], speed + dt * xp.stack(acceleration)], 1)
        return xp.concatenate([half + 0.5 * dt * velocity, velocity], 0)

    return step

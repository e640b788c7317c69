"""The same steps in JAX and in torch eager, beside which `evenflow bench scale` times ours.

Structure of arrays, float32, one step and the pull-back of an adjoint through it. JAX comes in two forms, both jitted
and differentiated by `jax.vjp`: matrices of all pairs, as it is usually written, and blocks of rows under `lax.map`
with `jax.checkpoint`, which never hold more than a block and were the fastest of six ways that were tried. Torch is
eager autograd: its forward step records the graph, its adjoint is the backward pass through it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.cart_pole import require
from engine.systems.fluid import lattice_sum
from engine.systems.guidance import DRIVER_DAMPING, EVADER_DAMPING, FLIGHT, SEPARATION, SOFTENING, SPACING

# Rows of pairs that a block of JAX holds: 64 to 250 were equally fast.
_ROWS = 80
_TINY = 1e-30

SumPairs = Callable[..., Any]
"""sum_pairs(ours [dim, n], theirs [dim, m], weight) = Σ_k weight(|r_ik|²) r_ik, r_ik = ours_i - theirs_k: [dim, n]."""
PeerStep = Callable[[Any, Any, SumPairs], Callable[[Any, Any], Any]]
"""peer_step(xp, system, sum_pairs), xp jax.numpy or torch: a step of state [rows, N] and control [rows, actuators]."""


@dataclass(frozen=True)
class Timed:
    """A side's step and adjoint, bound to their inputs; each call returns when it is done.

    Attributes:
        forward: next state [rows, N].
        adjoint: (Aᵀλ [rows, N], Bᵀλ [rows, actuators]), after `forward`.
    """

    forward: Callable[[], Any]
    adjoint: Callable[[], tuple[Any, Any]]


def swarm_step(xp: Any, system: Any, sum_pairs: SumPairs) -> Callable[[Any, Any], Any]:
    """`engine.Swarm` without a radius, with mean_centre and reversed_flocking."""
    drivers, dt, flocking = system.drivers, system.dt, system.flocking

    def over(near: float, far: float) -> Callable[[Any], Any]:
        def weight(squared: Any) -> Any:
            inverse = 1.0 / (SOFTENING + xp.sqrt(squared + _TINY))
            return inverse * (far + near * inverse)

        return weight

    def step(state: Any, control: Any) -> Any:
        position, velocity = state[:2], state[2:]
        of_drivers, of_evaders = position[:, :drivers], position[:, drivers:]
        r = of_drivers - of_evaders.mean(1)[:, None]
        push = control[:1] * r + control[1:] * xp.stack([-r[1], r[0]])
        push = push + sum_pairs(of_drivers, of_drivers, over(SEPARATION, 0.0))
        push = push - DRIVER_DAMPING * velocity[:, :drivers]
        flock = sum_pairs(of_evaders, of_evaders, over(SPACING * flocking, -flocking))
        flee = sum_pairs(of_evaders, of_drivers, over(FLIGHT, 0.0))
        flock = flock + flee - EVADER_DAMPING * velocity[:, drivers:]
        force = xp.concatenate([push, flock], 1)
        return xp.concatenate([position + dt * velocity, velocity + dt * force], 0)

    return step


def n_body_step(xp: Any, system: Any, sum_pairs: SumPairs) -> Callable[[Any, Any], Any]:
    """`engine.NBody` whose first bodies have the thrusters, all bodies of one mass."""
    dim, dt, thrusters, bodies = system.dim, system.dt, len(system.thrusters), system.bodies
    pull, softening = -system.gravity * system.masses[0], system.softening

    def weight(squared: Any) -> Any:
        inverse = 1.0 / xp.sqrt(squared + softening**2)
        return pull * inverse * inverse * inverse

    def step(state: Any, control: Any) -> Any:
        half = state[:dim] + 0.5 * dt * state[dim:]
        rest = xp.zeros((dim, bodies - thrusters), dtype=xp.float32)
        acceleration = sum_pairs(half, half, weight) + xp.concatenate([control, rest], 1)
        velocity = state[dim:] + dt * acceleration
        return xp.concatenate([half + 0.5 * dt * velocity, velocity], 0)

    return step


def fluid_step(xp: Any, system: Any, sum_pairs: SumPairs) -> Callable[[Any, Any], Any]:
    """`engine.Fluid` whose particles stay a kernel radius away from walls, as matrices of all pairs."""
    dim, dt, jets, radius = system.dim, system.dt, system.jets, system.radius
    alpha = {2: 7 / (math.pi * radius**2), 3: 21 / (2 * math.pi * radius**3)}[dim]
    volume = 1.0 / (alpha * lattice_sum(dim))
    thickness = 2.0 * (dim + 2) * system.viscosity

    def positive(values: Any) -> Any:
        return xp.maximum(values, xp.zeros_like(values))

    def step(state: Any, control: Any) -> Any:
        half, velocity = state[:dim] + 0.5 * dt * state[dim:], state[dim:]
        fluid, speed = half[:, jets:], velocity[:, jets:]
        r = [row[:, None] - row[None, :] for row in fluid]
        apart = [row[:, None] - row[None, :] for row in speed]
        squared = sum(one * one for one in r)
        distance = xp.sqrt(squared + _TINY)
        w = positive(1.0 - distance / radius)
        cubed = w * w * w
        z = volume * alpha * (cubed * w * (1.0 + 4.0 / radius * distance)).sum(1)
        pressure = positive(system.sound_speed**2 / 7 * (z**5 - 1.0 / (z * z)))
        friction = sum(one * other for one, other in zip(r, apart, strict=True)) / (squared + radius**2 / 400)
        stress = (pressure[:, None] + pressure[None, :] - thickness * friction) * cubed
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


def jax_peer(make: PeerStep, system: Any, arrays: Sequence[np.ndarray], in_blocks: bool) -> Timed:
    """Jitted step and vjp for (state, control, next_adjoint), without the batch axis."""
    jax, jnp = require("jax"), require("jax.numpy")

    def plain(ours: Any, theirs: Any, weight: Callable[[Any], Any]) -> Any:
        return _matrix_sum(jnp, ours, theirs, weight)

    def blocked(ours: Any, theirs: Any, weight: Callable[[Any], Any]) -> Any:
        dim, count = ours.shape
        if count <= _ROWS:
            return plain(ours, theirs, weight)
        blocks = -(-count // _ROWS)
        padded = jnp.pad(ours, ((0, 0), (0, blocks * _ROWS - count)))
        rows = padded.reshape(dim, blocks, _ROWS).swapaxes(0, 1)
        sums = jax.lax.map(jax.checkpoint(lambda block: plain(block, theirs, weight)), rows)
        return sums.swapaxes(0, 1).reshape(dim, -1)[:, :count]

    step = make(jnp, system, blocked if in_blocks else plain)
    state, control, next_adjoint = (jax.device_put(array, jax.devices("cpu")[0]) for array in arrays)
    forward = jax.jit(step)
    adjoint = jax.jit(lambda x, u, following: jax.vjp(step, x, u)[1](following))
    return Timed(
        lambda: jax.block_until_ready(forward(state, control)),
        lambda: jax.block_until_ready(adjoint(state, control, next_adjoint)),
    )


def torch_peer(make: PeerStep, system: Any, arrays: Sequence[np.ndarray]) -> Timed:
    """Eager step and backward pass for (state, control, next_adjoint), without the batch axis."""
    torch = require("torch")
    step = make(torch, system, lambda *given: _matrix_sum(torch, *given))
    state, control, next_adjoint = (torch.tensor(array) for array in arrays)
    state.requires_grad_()
    control.requires_grad_()
    graph = None

    def forward() -> Any:
        nonlocal graph
        graph = None
        graph = step(state, control)
        return graph.detach()

    def adjoint() -> tuple[Any, Any]:
        return torch.autograd.grad(graph, (state, control), next_adjoint, retain_graph=True)

    return Timed(forward, adjoint)


def _matrix_sum(xp: Any, ours: Any, theirs: Any, weight: Callable[[Any], Any]) -> Any:
    away = [row[:, None] - other[None, :] for row, other in zip(ours, theirs, strict=True)]
    weights = weight(sum(one * one for one in away))
    return xp.stack([(weights * one).sum(1) for one in away])


SIDES = {
    "JAX": ("jax", lambda *given: jax_peer(*given, in_blocks=False)),
    "JAX in blocks": ("jax", lambda *given: jax_peer(*given, in_blocks=True)),
    "torch eager": ("torch", torch_peer),
}
"""Peers by name: the module each needs, and how to make it."""

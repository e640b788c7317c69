"""Guidance and quantum control in JAX: what a peer needs of a task.

The pair forces are all-pairs expressions, the Crank-Nicolson step a tridiagonal solve (`lax.linalg`), the convolutions
`lax.conv_general_dilated`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.peer import require

Function = Callable[..., Any]


@dataclass(frozen=True)
class PeerTask:
    """What a peer needs of a task, in JAX functions.

    Attributes:
        policy: `policy(parameters, state)` for states [B, *state_shape].
        step: `step(state, control)`.
        cost: `cost(states, controls)`, the mean loss of states x_1..x_T [T, B, ...] and controls [T, B, ...].
        horizon: T.
    """

    policy: Function
    step: Function
    cost: Function
    horizon: int


def guidance_task(drivers: int, horizon: int, dt: float, regularisation: float) -> PeerTask:
    """Guidance by repulsion as in the paper's scripts: the centre is a sum, the target the origin."""
    jnp = require("jax.numpy")

    def policy(given: Any, state: Any) -> Any:
        signal = state.reshape(len(state), -1)
        layers = list(zip(given[0::2], given[1::2], strict=True))
        for weight, bias in layers[:-1]:
            signal = jnp.tanh(signal @ weight + bias)
        weight, bias = layers[-1]
        return (signal @ weight + bias).reshape(len(state), 2, drivers)

    def apart(ours: Any, theirs: Any) -> tuple[Any, Any]:
        """Differences [B, 2, n, m] and softened distances [B, 1, n, m]; the root's derivative at 0 is 0."""
        difference = ours[:, :, :, None] - theirs[:, :, None, :]
        square = (difference**2).sum(1, keepdims=True)
        length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        return difference, 0.1 + length

    def step(state: Any, control: Any) -> Any:
        position, velocity = state[:, :2], state[:, 2:]
        of_drivers, of_evaders = position[:, :, :drivers], position[:, :, drivers:]
        r = of_drivers - of_evaders.sum(2, keepdims=True)
        across = jnp.stack([-r[:, 1], r[:, 0]], 1)
        difference, distance = apart(of_drivers, of_drivers)
        push = control[:, :1] * r + control[:, 1:] * across
        push += 0.2 * (difference / distance**2).sum(3) - velocity[:, :, :drivers]
        difference, distance = apart(of_evaders, of_drivers)
        flight = 15.0 * (difference / distance**2).sum(3) - 4.0 * velocity[:, :, drivers:]
        difference, distance = apart(of_evaders, of_evaders)
        flight -= 0.2 * ((0.5 / distance - 1.0) / distance * difference).sum(3)
        force = jnp.concatenate([push, flight], 2)
        return jnp.concatenate([position + dt * velocity, velocity + dt * force], 1)

    def cost(states: Any, controls: Any) -> Any:
        return (states[:, :, :2, drivers:] ** 2).mean() + regularisation * (controls**2).mean()

    return PeerTask(policy, step, cost, horizon)


def quantum_task(points: int, horizon: int, dt: float, target: int) -> PeerTask:
    """A particle in a box, steered to an eigenstate; the policy is two convolutions and a dense layer."""
    jax, jnp = require("jax"), require("jax.numpy")
    dx = 2.0 / (points + 1)
    grid = np.arange(1, points + 1)
    place = jnp.asarray(grid * dx, jnp.float32)
    wanted = np.sin(np.pi * target * grid / (points + 1))
    wanted = jnp.asarray(wanted / np.linalg.norm(wanted), jnp.float32)
    beside = jnp.full(points, -1.0 / dx**2, jnp.float32)
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(2,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )

    def policy(given: Any, state: Any) -> Any:
        signal = state.swapaxes(1, 2)
        first, first_bias, second, second_bias, last, last_bias = given
        signal = jnp.tanh(convolve(signal, first) + first_bias)
        signal = jnp.tanh(convolve(signal, second) + second_bias)
        return signal.reshape(len(state), -1) @ last + last_bias

    def step(state: Any, control: Any) -> Any:
        psi = jax.lax.complex(state[:, 0], state[:, 1])
        diagonal = 2.0 / dx**2 + control * place
        lower = jnp.concatenate([jnp.zeros((len(psi), 1)), jnp.broadcast_to(beside[1:], (len(psi), points - 1))], 1)
        upper = lower[:, ::-1]
        left = jnp.concatenate([jnp.zeros((len(psi), 1)), psi[:, :-1]], 1)
        right = jnp.concatenate([psi[:, 1:], jnp.zeros((len(psi), 1))], 1)
        half = 0.5j * dt
        explicit = psi - half * (diagonal * psi + lower * left + upper * right)
        implicit = 1.0 + half * diagonal
        solved = jax.lax.linalg.tridiagonal_solve(
            half * lower, implicit, half * upper, explicit[:, :, None]
        )[:, :, 0]  # fmt: skip
        return jnp.stack([solved.real, solved.imag], 1)

    def cost(states: Any, controls: Any) -> Any:
        overlap = (states * wanted).sum(-1)
        return (1.0 - (overlap**2).sum(-1)).sum(0).mean()

    return PeerTask(policy, step, cost, horizon)

"""JAX as it is usually written: `jax.grad` of a `lax.scan` under jit, `stop_gradient` where a path is cut.

Parameters come from our trainer, so that gradients can be compared.
"""

from functools import partial
from typing import Any

import torch

from benchmarks.peers.cart_pole import cart_pole_step, final_cost
from benchmarks.peers.jax_update import compiled_update
from benchmarks.peers.peer import SWEEPS, Peer, Update, arrays_of, combine, require
from benchmarks.peers.tasks import PeerTask, guidance_task, quantum_task
from training import Trainer


def cart_pole(trainer: Trainer, initial_states: torch.Tensor, letter: str) -> Update:
    """The swing-up, of whose states only the last one is kept."""
    jax, jnp = require("jax"), require("jax.numpy")
    step, horizon, arrays = partial(cart_pole_step, jnp), trainer.task.horizon, arrays_of(trainer)

    def loss(parameters: Any, initial: Any, sweep: tuple[bool, bool]) -> Any:
        weights, biases = parameters
        physics_open, policy_open = sweep

        def advance(state: Any, _: None) -> Any:
            signal = state if policy_open else jax.lax.stop_gradient(state)
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                signal = jnp.tanh(signal @ weight + bias)
            control = signal @ weights[-1] + biases[-1]
            return step(state if physics_open else jax.lax.stop_gradient(state), control), None

        final, _ = jax.lax.scan(advance, initial, None, horizon)
        return final_cost(jnp, final)

    def gradient(parameters: Any, initial: Any) -> Any:
        found = [jax.grad(loss)(parameters, initial, sweep) for sweep in SWEEPS[letter]]
        return jax.tree.map(lambda *each: combine(jnp, each), *found)

    given = (arrays[0::2], arrays[1::2])
    return compiled_update(trainer, given, initial_states, gradient)


def by_task(task: PeerTask, trainer: Trainer, initial: torch.Tensor, letter: str) -> Update:
    """The update of a task that is given by its functions."""
    jax, jnp = require("jax"), require("jax.numpy")

    def loss(given: Any, start: Any, sweep: tuple[bool, bool]) -> Any:
        physics_open, policy_open = sweep
        stopped = jax.lax.stop_gradient

        def advance(state: Any, _: None) -> Any:
            control = task.policy(given, state if policy_open else stopped(state))
            following = task.step(state if physics_open else stopped(state), control)
            return following, (following, control)

        _, (states, controls) = jax.lax.scan(advance, start, None, task.horizon)
        return task.cost(states, controls)

    def gradient(given: Any, start: Any) -> Any:
        found = [jax.grad(loss)(given, start, sweep) for sweep in SWEEPS[letter]]
        return jax.tree.map(lambda *each: combine(jnp, each), *found)

    return compiled_update(trainer, arrays_of(trainer), initial, gradient)


def guidance(trainer: Trainer, initial: torch.Tensor, letter: str) -> Update:
    task: Any = trainer.task
    system = task.system
    given = guidance_task(system.drivers, task.horizon, system.dt, task.objective.regularisation)
    return by_task(given, trainer, initial, letter)


def quantum(trainer: Trainer, initial: torch.Tensor, letter: str) -> Update:
    task: Any = trainer.task
    given = quantum_task(task.system.points, task.horizon, task.system.dt, task.objective.target)
    return by_task(given, trainer, initial, letter)


UPDATES = {"cart-pole": cart_pole, "guidance": guidance, "quantum": quantum}
PEER = Peer("JAX, jax.grad", "jax", UPDATES, UPDATES)

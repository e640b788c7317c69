"""JAX written for speed: the adjoint recursion by hand, both sweeps of C in one scan, all of it one compiled call.

It keeps the rollout's states and activations, pulls back through the policy once over all its rows, and sweeps the
physics backwards.
"""

from functools import partial
from typing import Any

import torch

from benchmarks.peers.cart_pole import cart_pole_step, final_cost
from benchmarks.peers.jax_update import compiled_update
from benchmarks.peers.peer import SWEEPS, Peer, Update, arrays_of, combine, require
from training import Trainer


def cart_pole(trainer: Trainer, initial_states: torch.Tensor, letter: str) -> Update:
    """The swing-up."""
    jax, jnp = require("jax"), require("jax.numpy")
    sweeps, arrays, horizon = SWEEPS[letter], arrays_of(trainer), trainer.task.horizon
    step = partial(cart_pole_step, jnp)

    def gradient(parameters: Any, initial: Any) -> Any:
        weights, biases = parameters
        batch = len(initial)
        final, inputs, controls = _rollout(jax, jnp, step, weights, biases, initial, horizon)
        rows = [layer.reshape(horizon * batch, -1) for layer in inputs]
        cotangents = _unit_cotangents(jnp, weights, rows)
        feedback = (cotangents[0] @ weights[0].T).reshape(inputs[0].shape)

        def retreat(adjoints: Any, at: Any) -> Any:
            state, control, slope = at
            _, pull_back = jax.vjp(step, state, control)
            through_physics, control_adjoints = jax.vmap(pull_back)(adjoints)
            through_policy, cut = slope * control_adjoints, jnp.zeros_like(state)
            adjoints = []
            for sweep, (physics_open, policy_open) in enumerate(sweeps):
                by_physics = through_physics[sweep] if physics_open else cut
                adjoints.append(by_physics + (through_policy[sweep] if policy_open else cut))
            return jnp.stack(adjoints), control_adjoints

        last = jnp.stack([jax.grad(partial(final_cost, jnp))(final)] * len(sweeps))
        _, found = jax.lax.scan(retreat, last, (inputs[0], controls, feedback), reverse=True)
        scales = [found[:, sweep].reshape(-1, 1) for sweep in range(len(sweeps))]
        return _of_parameters(jnp, rows, cotangents, scales)

    return compiled_update(trainer, (arrays[0::2], arrays[1::2]), initial_states, gradient)


def _rollout(jax: Any, jnp: Any, step: Any, weights: Any, biases: Any, initial: Any, horizon: int) -> Any:
    """(final state, inputs of each layer, controls), of all steps."""

    def advance(state: Any, _: None) -> Any:
        inputs = [state]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(jnp.tanh(inputs[-1] @ weight + bias))
        control = inputs[-1] @ weights[-1] + biases[-1]
        return step(state, control), (inputs, control)

    final, (inputs, controls) = jax.lax.scan(advance, initial, None, horizon)
    return final, inputs, controls


def _unit_cotangents(jnp: Any, weights: Any, rows: Any) -> list[Any]:
    """What a cotangent of 1 on the control pulls back to at each layer: the control is a scalar, which scales it."""
    cotangents = [jnp.ones((len(rows[0]), 1))]
    for weight, activation in zip(weights[:0:-1], rows[:0:-1], strict=True):
        cotangents.insert(0, cotangents[0] @ weight.T * (1 - activation**2))
    return cotangents


def _of_parameters(jnp: Any, rows: Any, cotangents: Any, scales: Any) -> Any:
    """Gradients of weights and of biases, from the control's cotangents of each sweep."""
    of_weights, of_biases = [], []
    for layer, cotangent in zip(rows, cotangents, strict=True):
        scaled = jnp.concatenate([scale * cotangent for scale in scales], axis=1)
        of_weights.append(combine(jnp, jnp.split(layer.T @ scaled, len(scales), axis=1)))
        of_biases.append(combine(jnp, jnp.split(scaled.sum(axis=0), len(scales))))
    return of_weights, of_biases


PEER = Peer("JAX, by hand", "jax", {"cart-pole": cart_pole}, {"cart-pole": cart_pole})

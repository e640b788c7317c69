"""How the peers in JAX train: one compiled call for a gradient and a step of Adam."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import BETA1, BETA2, EPS, LEARNING_RATE, Update, require
from training import Trainer


def compiled_update(
    trainer: Trainer, given: Any, initial_states: torch.Tensor, gradient: Callable[[Any, Any], Any]
) -> Update:
    """One compiled call for gradient and Adam, whose parameters and moments are updated in their own buffers.

    Several members are mapped over: `jax.vmap` of the gradient of one.
    """
    jax, jnp = require("jax"), require("jax.numpy")
    members, starts = len(trainer.policy.theta), initial_states.numpy().copy()
    if members > 1:
        gradient, starts = jax.vmap(gradient), starts.reshape(members, -1, *starts.shape[1:])

    def train(training: Any, initial: Any) -> Any:
        parameters, mean, square, count = training
        found, count = gradient(parameters, initial), count + 1
        mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, mean, found)
        square = jax.tree.map(lambda s, g: BETA2 * s + (1 - BETA2) * g * g, square, found)
        # 1 - beta^count, which float32 would round away.
        warmth1, warmth2 = (-jnp.expm1(count * np.log(beta)) for beta in (BETA1, BETA2))

        def move(p: Any, m: Any, s: Any) -> Any:
            return p - LEARNING_RATE * jnp.sqrt(warmth2) / warmth1 * m / (jnp.sqrt(s) + EPS)

        return jax.tree.map(move, parameters, mean, square), mean, square, count

    zeros = jax.tree.map(np.zeros_like, given)
    start = ((given, zeros, zeros, np.float32(0)), starts)
    training, initial = jax.device_put(start, jax.devices("cpu")[0], may_alias=False)
    compiled = jax.jit(train, donate_argnums=0)

    def update() -> None:
        nonlocal training
        training = jax.block_until_ready(compiled(training, initial))

    def next_gradient() -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(gradient)(training[0], initial))]

    return Update(update, next_gradient, lambda: [np.asarray(leaf) for leaf in jax.tree.leaves(training[0])])

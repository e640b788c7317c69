"""Who computes the same training update as we do, by task: what `evenflow bench speed` times beside ours."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.peers import cart_pole
from benchmarks.peers.cart_pole import Peer
from benchmarks.peers.tasks import guidance_task, jax_task_peer, quantum_task
from policies import MLP
from training import Trainer

MakePeer = Callable[[Trainer, torch.Tensor, str], Peer]
"""`make(trainer, initial, letter)`: the update of a trainer on a mini-batch, along the gradient of this letter."""


@dataclass(frozen=True)
class Side:
    """Another tool that does the same update.

    Attributes:
        name: in tables.
        needs: the module that it cannot do without.
        make: the peer of a trainer.
    """

    name: str
    needs: str
    make: MakePeer

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


def layers_of(trainer: Trainer, flat: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights and biases of the first member's layers; a convolution's weights as [width, channels, filters]."""
    policy: Any = trainer.policy
    pairs = [(layer[0, :-1], layer[0, -1]) for layer in policy.layers(flat)]
    if isinstance(policy, MLP):
        return pairs
    *convolutions, last = pairs
    return [(weights.unflatten(0, (policy.width, -1)), biases) for weights, biases in convolutions] + [last]


def _cart_pole(make: Callable, trainer: Trainer, initial: torch.Tensor, letter: str) -> Peer:
    arrays = _arrays(trainer)
    problem = cart_pole.Problem(
        initial.numpy().copy(), tuple(arrays[0::2]), tuple(arrays[1::2]), trainer.task.horizon
    )  # fmt: skip
    return make(problem, letter)


def _guidance(trainer: Trainer, initial: torch.Tensor, letter: str) -> Peer:
    task: Any = trainer.task
    problem = guidance_task(task.system.drivers, task.horizon, task.system.dt, task.objective.regularisation)
    return jax_task_peer(problem, _arrays(trainer), initial.numpy().copy(), letter)


def _quantum(trainer: Trainer, initial: torch.Tensor, letter: str) -> Peer:
    task: Any = trainer.task
    problem = quantum_task(task.system.points, task.horizon, task.system.dt, task.objective.target)
    return jax_task_peer(problem, _arrays(trainer), initial.numpy().copy(), letter)


def _arrays(trainer: Trainer) -> list[np.ndarray]:
    """Weights and biases by turns, layer by layer."""
    pairs = layers_of(trainer, trainer.policy.theta.detach())
    return [part.numpy().copy() for pair in pairs for part in pair]


_BY_JAX = "JAX, jax.grad"
SIDES: dict[str, tuple[Side, ...]] = {
    "cart-pole": (
        Side(_BY_JAX, "jax", partial(_cart_pole, cart_pole.jax_autodiff_peer)),
        Side("JAX, by hand", "jax", partial(_cart_pole, cart_pole.jax_peer)),
        Side("torch eager", "torch", partial(_cart_pole, cart_pole.torch_peer)),
    ),
    "guidance": (Side(_BY_JAX, "jax", _guidance),),
    "quantum": (Side(_BY_JAX, "jax", _quantum),),
}
"""For each task that can be timed, the sides beside ours: another is one more line."""

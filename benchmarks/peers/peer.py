"""What a peer is: another tool that computes the same training update, or the same step of particles, as we do.

Every update is a rollout of a task under its policy, the gradient of the mean loss over the batch by one variant, and
a step of Adam as Keras has it (learning rate 1e-3, eps 1e-7), in float32 on the CPU:

    R  every path        M  physics path only      S  neither path      N  policy path only
    C  M's component where its sign is R's, else 0

One core against one core: neither `--xla_cpu_multi_thread_eigen=false` nor `intra_op_parallelism_threads=1` in
`XLA_FLAGS` holds JAX to one thread. The affinity mask does: XLA starts as many workers as the process may use cores.
Start the process under `taskset -c 0`, or call `use_one_core()` before anything has imported JAX or PyTorch.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from policies import MLP, Convolutional
from training import Trainer

LEARNING_RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-7
# variant: for each backward sweep, (the physics path is open, the policy path is open)
SWEEPS = {
    "R": ((True, True),),
    "M": ((True, False),),
    "S": ((False, False),),
    "N": ((False, True),),
    "C": ((True, False), (True, True)),
}


SumPairs = Callable[..., Any]
"""sum_pairs(ours [dim, n], theirs [dim, m], weight) = Σ_k weight(|r_ik|²) r_ik, r_ik = ours_i - theirs_k: [dim, n]."""
PeerStep = Callable[[Any, Any, SumPairs], Callable[[Any, Any], Any]]
"""peer_step(xp, system, sum_pairs), xp jax.numpy or torch: a step of state [rows, N] and control [rows, actuators]."""


@dataclass(frozen=True)
class Update:
    """A training update, bound to its parameters and its mini-batch.

    Attributes:
        update: trains once and returns when it is done.
        gradient: what the next update would follow, array by array in the peer's own order.
        parameters: likewise what has been trained.
    """

    update: Callable[[], None]
    gradient: Callable[[], list[np.ndarray]]
    parameters: Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Timed:
    """A side's step and adjoint, bound to their inputs; each call returns when it is done.

    Attributes:
        forward: next state [rows, N].
        adjoint: (Aᵀλ [rows, N], Bᵀλ [rows, actuators]), after `forward`.
    """

    forward: Callable[[], Any]
    adjoint: Callable[[], tuple[Any, Any]]


MakeUpdate = Callable[[Trainer, torch.Tensor, str], Update]
"""make(trainer, initial, letter): the update of a trainer on a mini-batch, along the gradient of this letter."""
MakeStep = Callable[[PeerStep, Any, Sequence[np.ndarray]], Timed]
"""make(step, system, (state, control, next_adjoint)): a step and its adjoint, without the batch axis."""


@dataclass(frozen=True)
class Peer:
    """Another tool that does what we do.

    Attributes:
        name: in tables.
        needs: the module that it cannot do without.
        updates: by task, what makes its training update.
        step: what makes a step of particles and its adjoint; None if it does not.
    """

    name: str
    needs: str
    updates: Mapping[str, MakeUpdate] = field(default_factory=dict)
    step: MakeStep | None = None

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


def use_one_core() -> None:
    """Bind this process, and every thread it starts from now on, to one core (Linux only)."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"This peer needs `{module}`, which is not installed here.") from error


def combine(xp: Any, found: Any) -> Any:
    """Of one sweep its gradient; of two, the first where the second has the same sign, else 0."""
    first, *others = found
    return xp.where(xp.sign(first) == xp.sign(others[0]), first, 0) if others else first


def parts_of(trainer: Trainer, flat: torch.Tensor) -> list[torch.Tensor]:
    """What [P, n] holds of the first member, array by array: weights and biases of its layers by turns.

    A convolution's weights are [width, channels, filters]; parameters of a policy without layers are one array [n].
    """
    policy: Any = trainer.policy
    if not isinstance(policy, (MLP, Convolutional)):
        return [flat[0]]
    pairs = [(layer[0, :-1], layer[0, -1]) for layer in policy.layers(flat)]
    if isinstance(policy, Convolutional):
        *convolutions, last = pairs
        pairs = [(weights.unflatten(0, (policy.width, -1)), biases) for weights, biases in convolutions] + [last]
    return [part for pair in pairs for part in pair]


def arrays_of(trainer: Trainer) -> list[np.ndarray]:
    """The first member's parameters, as `parts_of` has them."""
    return [part.numpy().copy() for part in parts_of(trainer, trainer.policy.theta.detach())]


def matrix_sum(xp: Any, ours: Any, theirs: Any, weight: Callable[[Any], Any]) -> Any:
    """`SumPairs` as matrices of all pairs."""
    away = [row[:, None] - other[None, :] for row, other in zip(ours, theirs, strict=True)]
    weights = weight(sum(one * one for one in away))
    return xp.stack([(weights * one).sum(1) for one in away])

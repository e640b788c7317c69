"""What a peer is: another tool that computes the same training update, or the same step of particles, as we do.

Every update is a rollout of a task under its policy, the gradient of the mean loss over the batch by one variant, and
a step of Adam as Keras has it (learning rate 1e-3, eps 1e-7), in float32 on the CPU:

    R  every path        M  physics path only      S  neither path      N  policy path only
    C  M's component where its sign is R's, else 0

One core against one core: neither `--xla_cpu_multi_thread_eigen=false` nor `intra_op_parallelism_threads=1` in
`XLA_FLAGS` holds JAX to one thread. The affinity mask does: XLA starts as many workers as the process may use cores.
Start the process under `taskset -c 0`, or call `use_cores(1)` before anything has imported JAX or PyTorch.
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

OURS = "Evenflow"
"""The side that is ours, among the names of peers."""
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
Others = Callable[..., Any]
"""others(row [n], absent) = of each particle the values of those beside it [n or 1, K], else `absent`."""


@dataclass(frozen=True)
class Pairs:
    """How a peer looks at pairs of particles.

    Attributes:
        total: over all pairs.
        near: `near(places [dim, n])`, who is beside whom: at least all within the radius, and itself.
    """

    total: SumPairs
    near: Callable[[Any], Others]


PeerStep = Callable[[Any, Any, Pairs], Callable[[Any, Any], Any]]
"""peer_step(xp, system, pairs), xp jax.numpy or torch: a step of state [rows, N] and control [rows, actuators]."""


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
        forward: next state, of the shape [rows, N] but for axes of its own.
        adjoint: (Aᵀλ, Bᵀλ), after `forward`; likewise.
    """

    forward: Callable[[], Any]
    adjoint: Callable[[], tuple[Any, Any]]


MakeUpdate = Callable[[Trainer, torch.Tensor, str], Update]
"""make(trainer, initial [P·B, ...], letter): the update on a mini-batch for each of P members, along this gradient."""
MakeStep = Callable[[PeerStep, Any, Sequence[np.ndarray]], Timed]
"""make(step, system, (state, control, next_adjoint)): a step and its adjoint, without the batch axis."""


@dataclass(frozen=True)
class Peer:
    """Another tool that does what we do.

    Attributes:
        name: in tables.
        needs: the module that it cannot do without.
        updates: by task, what makes its training update.
        ensembles: likewise of many members at once.
        step: what makes a step of particles and its adjoint; None if it does not.
        finds_neighbours: whether it looks for those within a radius, and not at all pairs.
    """

    name: str
    needs: str
    updates: Mapping[str, MakeUpdate] = field(default_factory=dict)
    ensembles: Mapping[str, MakeUpdate] = field(default_factory=dict)
    step: MakeStep | None = None
    finds_neighbours: bool = False

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


def use_cores(count: int) -> None:
    """Bind this process, and every thread that it starts from now on, to so many cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-count:]))


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
    """What [P, n] holds, array by array: weights and biases of the layers by turns.

    Each is [P, ...], of a single member without that axis. A convolution's weights are [width, channels, filters];
    parameters of a policy without layers are one array [n].
    """
    policy: Any = trainer.policy
    parts = [flat]
    if isinstance(policy, (MLP, Convolutional)):
        pairs = [(layer[:, :-1], layer[:, -1]) for layer in policy.layers(flat)]
        if isinstance(policy, Convolutional):
            *convolutions, last = pairs
            pairs = [(weights.unflatten(1, (policy.width, -1)), biases) for weights, biases in convolutions] + [last]
        parts = [part for pair in pairs for part in pair]
    return parts if len(flat) > 1 else [part[0] for part in parts]


def arrays_of(trainer: Trainer) -> list[np.ndarray]:
    """The policy's parameters, as `parts_of` has them."""
    return [part.numpy().copy() for part in parts_of(trainer, trainer.policy.theta.detach())]


def matrix_sum(xp: Any, ours: Any, theirs: Any, weight: Callable[[Any], Any]) -> Any:
    """`SumPairs` as matrices of all pairs."""
    return weighted_sum(xp, [row[:, None] - other[None, :] for row, other in zip(ours, theirs, strict=True)], weight)


def weighted_sum(xp: Any, away: Sequence[Any], weight: Callable[[Any], Any]) -> Any:
    """Σ_k weight(|r_ik|²) r_ik [dim, n] of r, a matrix [n, K] for each axis."""
    weights = weight(sum(one * one for one in away))
    return xp.stack([(weights * one).sum(1) for one in away])


def everyone(places: Any) -> Others:
    """`Pairs.near` without a radius: all particles are beside each other."""
    return lambda row, absent: row[None, :]

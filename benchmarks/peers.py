"""The same training update in JAX and in PyTorch: what the engine's speed is measured against.

One update is a rollout of the n-pole cart-pole under an MLP policy, the gradient of

    L = 1 - mean over the poles of cos(theta) at the last step, averaged over the batch

by one of the variants, and an Adam step (learning rate 1e-3, eps 1e-7), in float32 on the CPU:

    R  every path        M  physics path only      S  neither path      N  policy path only
    C  M's component where its sign is R's, else 0

JAX is written for speed, not as `jax.grad` of the rollout: one compiled call keeps the rollout's states and
activations, pulls back through the policy once over all its rows, and sweeps the physics backwards, both
sweeps of C together. PyTorch is written as it is usually used: eager autograd, `detach` where a path is cut,
for C one forward graph and two backward passes.

One core against one core: neither `--xla_cpu_multi_thread_eigen=false` nor
`intra_op_parallelism_threads=1` in `XLA_FLAGS` holds JAX to one thread. The affinity mask does: XLA starts as
many workers as the process may use cores. Start the process under `taskset -c 0`, or call `use_one_core()`
before anything has imported JAX or PyTorch.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LEARNING_RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-7
# variant: for each backward sweep, (the physics path is open, the policy path is open)
SWEEPS = {
    "R": ((True, True),),
    "M": ((True, False),),
    "S": ((False, False),),
    "N": ((False, True),),
    "C": ((True, False), (True, True)),
}


@dataclass(frozen=True)
class Problem:
    """One mini-batch of the swing-up and the policy to train on it, all float32.

    initial_states [batch, 2 + 2n] are (x, x', theta_1..theta_n, theta'_1..theta'_n); weights [in, out] each.
    """

    initial_states: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    horizon: int


@dataclass(frozen=True)
class Peer:
    """`update()` trains once and returns when it is done; `gradient()` is the gradient before any update.

    `gradient()` lists the weights' gradients, then the biases'.
    """

    name: str
    update: Callable[[], None]
    gradient: Callable[[], list[np.ndarray]]


def cart_pole_problem(
    poles: int, widths: tuple[int, ...] = (100, 100), horizon: int = 100, batch: int = 8, seed: int = 0
) -> Problem:
    """Random initial states around hanging, Glorot-uniform weights in every layer, zero biases."""
    random = np.random.default_rng(seed)
    states = random.uniform(-1, 1, (batch, 2 + 2 * poles))
    states[:, 2 : 2 + poles] = np.pi * (1 + states[:, 2 : 2 + poles] / 6)
    sizes = (2 + 2 * poles, *widths, 1)
    pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
    weights = [random.uniform(-1, 1, pair) * np.sqrt(6 / sum(pair)) for pair in pairs]
    return Problem(
        states.astype(np.float32),
        tuple(weight.astype(np.float32) for weight in weights),
        tuple(np.zeros(size, np.float32) for size in sizes[1:]),
        horizon,
    )


def use_one_core() -> None:
    """Bind this process, and every thread it starts from now on, to one core (Linux only)."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def jax_peer(problem: Problem, variant: str) -> Peer:
    """The update as one compiled JAX call whose parameters and moments are updated in their own buffers."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise ImportError("The JAX peer needs JAX, which is not installed: `pip install jax`.") from error

    sweeps = SWEEPS[variant]
    batch, width = problem.initial_states.shape
    poles, horizon = (width - 2) // 2, problem.horizon

    def final_cost(state: Any) -> Any:
        return 1 - jnp.cos(state[:, 2 : 2 + poles]).mean()

    def step(state: Any, control: Any) -> Any:
        return _cart_pole_step(jnp, state, control)

    def gradient(parameters: Any, initial: Any) -> Any:
        weights, biases = parameters

        def advance(state: Any, _: None) -> Any:
            inputs = [state]
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                inputs.append(jnp.tanh(inputs[-1] @ weight + bias))
            control = inputs[-1] @ weights[-1] + biases[-1]
            return step(state, control), (inputs, control)

        final, (inputs, controls) = jax.lax.scan(advance, initial, None, horizon)
        states = inputs[0]
        rows = [layer.reshape(horizon * batch, -1) for layer in inputs]

        # The control is a scalar, so its cotangent only scales what a cotangent of 1 pulls back to.
        cotangents = [jnp.ones((horizon * batch, 1))]
        for weight, activation in zip(weights[:0:-1], rows[:0:-1], strict=True):
            cotangents.insert(0, cotangents[0] @ weight.T * (1 - activation**2))
        feedback = (cotangents[0] @ weights[0].T).reshape(states.shape)

        def retreat(adjoints: Any, at: Any) -> Any:
            state, control, slope = at
            _, pull_back = jax.vjp(step, state, control)
            through_physics, control_adjoints = jax.vmap(pull_back)(adjoints)
            adjoints = [
                physics_open * adjoint + policy_open * slope * control_adjoint
                for (physics_open, policy_open), adjoint, control_adjoint in zip(
                    sweeps, through_physics, control_adjoints, strict=True
                )
            ]
            return jnp.stack(adjoints), control_adjoints

        last = jnp.stack([jax.grad(final_cost)(final)] * len(sweeps))
        _, found = jax.lax.scan(retreat, last, (states, controls, feedback), reverse=True)
        scales = [found[:, sweep].reshape(-1, 1) for sweep in range(len(sweeps))]

        of_weights, of_biases = [], []
        for layer, cotangent in zip(rows, cotangents, strict=True):
            scaled = jnp.concatenate([scale * cotangent for scale in scales], axis=1)
            of_weights.append(_combine(jnp, jnp.split(layer.T @ scaled, len(sweeps), axis=1)))
            of_biases.append(_combine(jnp, jnp.split(scaled.sum(axis=0), len(sweeps))))
        return of_weights, of_biases

    def train(training: Any, initial: Any) -> Any:
        parameters, mean, square, count = training
        found, count = gradient(parameters, initial), count + 1
        mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, mean, found)
        square = jax.tree.map(lambda s, g: BETA2 * s + (1 - BETA2) * g * g, square, found)
        mean_scale, square_scale = 1 / (1 - BETA1**count), 1 / (1 - BETA2**count)
        parameters = jax.tree.map(
            lambda p, m, s: p - LEARNING_RATE * m * mean_scale / (jnp.sqrt(s * square_scale) + EPS),
            *(parameters, mean, square),
        )
        return parameters, mean, square, count

    given = (list(problem.weights), list(problem.biases))
    zeros = jax.tree.map(np.zeros_like, given)
    training, initial = jax.device_put(
        ((given, zeros, zeros, np.float32(0)), problem.initial_states), jax.devices("cpu")[0]
    )
    compiled = jax.jit(train, donate_argnums=0)

    def update() -> None:
        nonlocal training
        training = jax.block_until_ready(compiled(training, initial))

    def first_gradient() -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(gradient)(given, initial))]

    return Peer(f"JAX {variant}", update, first_gradient)


def torch_peer(problem: Problem, variant: str) -> Peer:
    """The update in eager PyTorch: autograd and `torch.optim.Adam`, on one thread."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "The PyTorch peer needs PyTorch, which is not installed: `pip install torch`."
        ) from error

    torch.set_num_threads(1)
    sweeps = SWEEPS[variant]
    poles = (problem.initial_states.shape[1] - 2) // 2
    initial = torch.tensor(problem.initial_states)
    weights, biases = (
        [torch.tensor(array, requires_grad=True) for array in arrays]
        for arrays in (problem.weights, problem.biases)
    )
    parameters = [*weights, *biases]
    optimiser = torch.optim.Adam(parameters, LEARNING_RATE, (BETA1, BETA2), EPS, fused=True)
    policy_open = sweeps[0][1]

    class Gate(torch.autograd.Function):
        """The identity, whose cotangent passes only while `policy_open`: two backward passes, one graph."""

        @staticmethod
        def forward(_: Any, state: Any) -> Any:
            return state.view_as(state)

        @staticmethod
        def backward(_: Any, cotangent: Any) -> Any:
            return cotangent if policy_open else None

    def entering_policy(state: Any) -> Any:
        if len(sweeps) > 1:
            return Gate.apply(state)
        return state if policy_open else state.detach()

    def gradient() -> list[Any]:
        nonlocal policy_open
        state = initial
        for _ in range(problem.horizon):
            signal = entering_policy(state)
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                signal = torch.tanh(torch.addmm(bias, signal, weight))
            control = torch.addmm(biases[-1], signal, weights[-1])
            state = _cart_pole_step(torch, state if sweeps[0][0] else state.detach(), control)
        loss = 1 - torch.cos(state[:, 2 : 2 + poles]).mean()
        found = []
        for number, (_, policy_open) in enumerate(sweeps, start=1):  # noqa: B007 (the gate reads it)
            found.append(torch.autograd.grad(loss, parameters, retain_graph=number < len(sweeps)))
        return [_combine(torch, each) for each in zip(*found, strict=True)]

    def update() -> None:
        for parameter, found in zip(parameters, gradient(), strict=True):
            parameter.grad = found
        optimiser.step()

    return Peer(f"PyTorch {variant}", update, lambda: [found.numpy() for found in gradient()])


def _cart_pole_step(xp: Any, state: Any, control: Any, dt: float = 0.01) -> Any:
    """Semi-implicit Euler for n poles on one cart; `xp` is jax.numpy or torch. state [B, 2 + 2n], control [B, 1]."""
    gravity, pole_mass, total_mass, half_length = 9.8, 0.1, 1.1, 0.5
    moment, poles = pole_mass * half_length, (state.shape[-1] - 2) // 2
    position, velocity = state[:, :1], state[:, 1:2]
    angle, rate = state[:, 2 : 2 + poles], state[:, 2 + poles :]
    sine, cosine = xp.sin(angle), xp.cos(angle)
    spin = sine * rate**2
    push = (control + moment * spin) / total_mass
    turn = (gravity * sine - cosine * push) / (half_length * (4 / 3 - pole_mass / total_mass * cosine**2))
    pull = (control + moment * xp.sum(spin - turn * cosine, axis=-1, keepdims=True)) / total_mass
    velocity, rate = velocity + dt * pull, rate + dt * turn
    return xp.concatenate([position + dt * velocity, velocity, angle + dt * rate, rate], axis=-1)


def _combine(xp: Any, found: Any) -> Any:
    """Of one sweep its gradient; of two, the first where the second has the same sign, else 0."""
    first, *others = found
    return xp.where(xp.sign(first) == xp.sign(others[0]), first, 0) if others else first

"""The same training update in JAX and in PyTorch: what the engine's speed is measured against.

One update is a rollout of the n-pole cart-pole under an MLP policy, the gradient of

    L = 1 - mean over the poles of cos(theta) at the last step, averaged over the batch

by one of the variants, and a step of Adam as Keras has it (learning rate 1e-3, eps 1e-7), in float32 on the CPU:

    R  every path        M  physics path only      S  neither path      N  policy path only
    C  M's component where its sign is R's, else 0

JAX comes in two forms. One is `jax.grad` of a scan under jit, as JAX is usually written. The other is written for
speed: one compiled call keeps the rollout's states and activations, pulls back through the policy once over all its
rows, and sweeps the physics backwards, both sweeps of C together. PyTorch is written as it is usually used: eager
autograd, `detach` where a path is cut, for C one forward graph and two backward passes.

One core against one core: neither `--xla_cpu_multi_thread_eigen=false` nor
`intra_op_parallelism_threads=1` in `XLA_FLAGS` holds JAX to one thread. The affinity mask does: XLA starts as
many workers as the process may use cores. Start the process under `taskset -c 0`, or call `use_one_core()`
before anything has imported JAX or PyTorch.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    """`update()` trains once and returns when it is done; `gradient()` is what the next update would follow.

    `gradient()` lists the weights' gradients, then the biases'; `parameters()` likewise what has been trained.
    """

    name: str
    update: Callable[[], None]
    gradient: Callable[[], list[np.ndarray]]
    parameters: Callable[[], list[np.ndarray]]


def use_one_core() -> None:
    """Bind this process, and every thread it starts from now on, to one core (Linux only)."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def jax_peer(problem: Problem, variant: str) -> Peer:
    """The update with the adjoint recursion written out, both sweeps of C in one scan."""
    jax, jnp = require("jax"), require("jax.numpy")
    sweeps = SWEEPS[variant]
    batch, horizon = len(problem.initial_states), problem.horizon
    step = partial(_cart_pole_step, jnp)

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
            through_policy, cut = slope * control_adjoints, jnp.zeros_like(state)
            adjoints = []
            for sweep, (physics_open, policy_open) in enumerate(sweeps):
                by_physics = through_physics[sweep] if physics_open else cut
                adjoints.append(by_physics + (through_policy[sweep] if policy_open else cut))
            return jnp.stack(adjoints), control_adjoints

        last = jnp.stack([jax.grad(partial(_final_cost, jnp))(final)] * len(sweeps))
        _, found = jax.lax.scan(retreat, last, (states, controls, feedback), reverse=True)
        scales = [found[:, sweep].reshape(-1, 1) for sweep in range(len(sweeps))]

        of_weights, of_biases = [], []
        for layer, cotangent in zip(rows, cotangents, strict=True):
            scaled = jnp.concatenate([scale * cotangent for scale in scales], axis=1)
            of_weights.append(combine(jnp, jnp.split(layer.T @ scaled, len(sweeps), axis=1)))
            of_biases.append(combine(jnp, jnp.split(scaled.sum(axis=0), len(sweeps))))
        return of_weights, of_biases

    return compiled_peer(f"JAX {variant}, adjoint by hand", _parameters(problem), problem.initial_states, gradient)


def jax_autodiff_peer(problem: Problem, variant: str) -> Peer:
    """The update as JAX is usually written: `jax.grad` of a scan, `stop_gradient` where a path is cut."""
    jax, jnp = require("jax"), require("jax.numpy")
    step = partial(_cart_pole_step, jnp)

    def loss(parameters: Any, initial: Any, sweep: tuple[bool, bool]) -> Any:
        weights, biases = parameters
        physics_open, policy_open = sweep

        def advance(state: Any, _: None) -> Any:
            signal = state if policy_open else jax.lax.stop_gradient(state)
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                signal = jnp.tanh(signal @ weight + bias)
            control = signal @ weights[-1] + biases[-1]
            return step(state if physics_open else jax.lax.stop_gradient(state), control), None

        final, _ = jax.lax.scan(advance, initial, None, problem.horizon)
        return _final_cost(jnp, final)

    def gradient(parameters: Any, initial: Any) -> Any:
        found = [jax.grad(loss)(parameters, initial, sweep) for sweep in SWEEPS[variant]]
        return jax.tree.map(lambda *each: combine(jnp, each), *found)

    return compiled_peer(f"JAX {variant}, jax.grad", _parameters(problem), problem.initial_states, gradient)


def _parameters(problem: Problem) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return list(problem.weights), list(problem.biases)


def compiled_peer(name: str, given: Any, initial_states: np.ndarray, gradient: Callable[[Any, Any], Any]) -> Peer:
    """One compiled call for gradient and Adam, whose parameters and moments are updated in their own buffers."""
    jax, jnp = require("jax"), require("jax.numpy")

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
    start = ((given, zeros, zeros, np.float32(0)), initial_states)
    training, initial = jax.device_put(start, jax.devices("cpu")[0], may_alias=False)
    compiled = jax.jit(train, donate_argnums=0)

    def update() -> None:
        nonlocal training
        training = jax.block_until_ready(compiled(training, initial))

    def next_gradient() -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(gradient)(training[0], initial))]

    return Peer(name, update, next_gradient, lambda: [np.asarray(leaf) for leaf in jax.tree.leaves(training[0])])


def torch_peer(problem: Problem, variant: str) -> Peer:
    """The update in eager PyTorch: autograd and `torch.optim.Adam`, with the eps that makes its step Keras'."""
    torch = require("torch")
    sweeps = SWEEPS[variant]
    initial = torch.tensor(problem.initial_states)
    weights = [torch.tensor(array, requires_grad=True) for array in problem.weights]
    biases = [torch.tensor(array, requires_grad=True) for array in problem.biases]
    parameters = [*weights, *biases]
    optimiser = torch.optim.Adam(parameters, LEARNING_RATE, (BETA1, BETA2), EPS, fused=True)
    policy_open, count = sweeps[0][1], 0

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
        loss, found = _final_cost(torch, state), []
        for sweep in sweeps:
            policy_open = sweep[1]
            found.append(torch.autograd.grad(loss, parameters, retain_graph=sweep is not sweeps[-1]))
        return [combine(torch, each) for each in zip(*found, strict=True)]

    def update() -> None:
        nonlocal count
        for parameter, found in zip(parameters, gradient(), strict=True):
            parameter.grad = found
        count += 1
        optimiser.param_groups[0]["eps"] = EPS / (1 - BETA2**count) ** 0.5
        optimiser.step()

    arrays = lambda: [parameter.detach().numpy() for parameter in parameters]  # noqa: E731
    return Peer(f"PyTorch {variant}", update, lambda: [found.numpy() for found in gradient()], arrays)


def require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"This peer needs `{module}`, which is not installed here.") from error


def _cart_pole_step(xp: Any, state: Any, control: Any, dt: float = 0.01) -> Any:
    """Semi-implicit Euler, n poles on a cart; state [B, 2 + 2n], control [B, 1], xp jax.numpy or torch."""
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


def _final_cost(xp: Any, state: Any) -> Any:
    poles = (state.shape[-1] - 2) // 2
    return 1 - xp.cos(state[:, 2 : 2 + poles]).mean()


def combine(xp: Any, found: Any) -> Any:
    """Of one sweep its gradient; of two, the first where the second has the same sign, else 0."""
    first, *others = found
    return xp.where(xp.sign(first) == xp.sign(others[0]), first, 0) if others else first

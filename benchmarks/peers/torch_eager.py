"""PyTorch as it is usually used: eager autograd, `detach` where a path is cut.

For C one forward graph and two backward passes. Of a step of particles the forward step records the graph, and the
adjoint is the backward pass through it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.peers.cart_pole import cart_pole_step, final_cost
from benchmarks.peers.peer import (
    BETA1,
    BETA2,
    EPS,
    LEARNING_RATE,
    SWEEPS,
    Pairs,
    Peer,
    PeerStep,
    Timed,
    Update,
    arrays_of,
    combine,
    everyone,
    matrix_sum,
)
from training import Trainer


class _Gate(torch.autograd.Function):
    """The identity, whose cotangent passes only while `gate["open"]`: two backward passes, one graph."""

    @staticmethod
    def forward(ctx: Any, state: Any, gate: dict[str, bool]) -> Any:
        ctx.gate = gate
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return (cotangents[0] if ctx.gate["open"] else None), None


def cart_pole(trainer: Trainer, initial_states: torch.Tensor, letter: str) -> Update:
    """The swing-up by autograd."""
    sweeps, initial, horizon = SWEEPS[letter], initial_states.clone(), trainer.task.horizon
    arrays = [torch.tensor(array, requires_grad=True) for array in arrays_of(trainer)]
    weights, biases = arrays[0::2], arrays[1::2]
    parameters = [*weights, *biases]
    gate = {"open": sweeps[0][1]}

    def entering_policy(state: Any) -> Any:
        if len(sweeps) > 1:
            return _Gate.apply(state, gate)
        return state if gate["open"] else state.detach()

    def gradient() -> list[Any]:
        state = initial
        for _ in range(horizon):
            signal = entering_policy(state)
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                signal = torch.tanh(torch.addmm(bias, signal, weight))
            control = torch.addmm(biases[-1], signal, weights[-1])
            state = cart_pole_step(torch, state if sweeps[0][0] else state.detach(), control)
        loss, found = final_cost(torch, state), []
        for sweep in sweeps:
            gate["open"] = sweep[1]
            found.append(torch.autograd.grad(loss, parameters, retain_graph=sweep is not sweeps[-1]))
        return [combine(torch, each) for each in zip(*found, strict=True)]

    return followed(parameters, gradient)


def followed(parameters: list[torch.Tensor], gradient: Callable[[], Sequence[torch.Tensor]]) -> Update:
    """A gradient followed by `torch.optim.Adam`, with the eps that makes its step Keras'."""
    optimiser, count = torch.optim.Adam(parameters, LEARNING_RATE, (BETA1, BETA2), EPS, fused=True), 0

    def update() -> None:
        nonlocal count
        for parameter, found in zip(parameters, gradient(), strict=True):
            parameter.grad = found
        count += 1
        optimiser.param_groups[0]["eps"] = EPS / (1 - BETA2**count) ** 0.5
        optimiser.step()

    arrays_now = lambda: [parameter.detach().numpy() for parameter in parameters]  # noqa: E731
    return Update(update, lambda: [found.numpy() for found in gradient()], arrays_now)


def particles(make: PeerStep, system: Any, arrays: Sequence[np.ndarray]) -> Timed:
    """Eager step and backward pass."""
    step = make(torch, system, Pairs(lambda *given: matrix_sum(torch, *given), everyone))
    state, control, next_adjoint = (torch.tensor(array) for array in arrays)
    state.requires_grad_()
    control.requires_grad_()
    graph: Any = None

    def forward() -> Any:
        nonlocal graph
        graph = None
        graph = step(state, control)
        return graph.detach()

    def adjoint() -> Any:
        return torch.autograd.grad(graph, (state, control), next_adjoint, retain_graph=True)

    return Timed(forward, adjoint)


PEER = Peer("torch eager", "torch", {"cart-pole": cart_pole}, step=particles)

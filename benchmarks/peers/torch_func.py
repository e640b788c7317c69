"""PyTorch's transforms: `torch.func.vmap` of `torch.func.grad` over members, one rollout for each sweep."""

from typing import Any

import torch

from benchmarks.peers.cart_pole import cart_pole_step, final_cost
from benchmarks.peers.peer import SWEEPS, Peer, Update, arrays_of, combine
from benchmarks.peers.torch_eager import followed
from training import Trainer


def cart_pole(trainer: Trainer, initial_states: torch.Tensor, letter: str) -> Update:
    """The swing-up of several members."""
    members, horizon = len(trainer.policy.theta), trainer.task.horizon
    parameters = [torch.tensor(array) for array in arrays_of(trainer)]
    initial = initial_states.clone().unflatten(0, (members, -1))

    def loss(given: list[Any], state: Any, sweep: tuple[bool, bool]) -> Any:
        physics_open, policy_open = sweep
        layers = list(zip(given[0::2], given[1::2], strict=True))
        for _ in range(horizon):
            signal = state if policy_open else state.detach()
            for weight, bias in layers[:-1]:
                signal = torch.tanh(signal @ weight + bias)
            weight, bias = layers[-1]
            state = cart_pole_step(torch, state if physics_open else state.detach(), signal @ weight + bias)
        return final_cost(torch, state)

    def of_member(given: list[Any], start: Any) -> list[Any]:
        found = [torch.func.grad(loss)(given, start, sweep) for sweep in SWEEPS[letter]]
        return [combine(torch, each) for each in zip(*found, strict=True)]

    if members == 1:  # whose arrays have no axis of members
        return followed(parameters, lambda: of_member(parameters, initial[0]))
    return followed(parameters, lambda: torch.func.vmap(of_member)(parameters, initial))


PEER = Peer("torch.func", "torch", ensembles={"cart-pole": cart_pole})

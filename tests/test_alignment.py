"""Costs with matrix products: where a block of time lies in the buffers shows in no bit of its gradient."""

import pytest
import torch
from conftest import BySteps, tensor_options, uniform

from engine import FULL, PHYSICS_ONLY, LinearSystem, Rollout
from engine import trajectory as trajectory_module
from engine.alignment import aligned
from policies import MLP

STATES, CONTROLS, HORIZON, BATCH = 9, 1, 7, 5
RULES = [FULL, PHYSICS_ONLY, BySteps(FULL)]


class Products:
    """ℓ_t = (x·w)² / 100 + xᵀWx / 1000 + (u·v)² / 10, ℓ_T = (x·w)²."""

    def __init__(self):
        self.w, self.v = uniform(5, STATES, 1), uniform(6, CONTROLS, 1)
        self.W = uniform(7, STATES, STATES)

    def seen(self, *given):
        """What is differentiated begins alike wherever it lies in the buffers."""
        assert {tensor.data_ptr() % 64 for tensor in given if tensor.requires_grad} <= {0}

    def running(self, states, controls, steps):
        self.seen(states, controls)
        square = 0.001 * ((states @ self.W) * states).sum(2)
        return 0.01 * (states @ self.w).squeeze(2) ** 2 + square + 0.1 * (controls @ self.v).squeeze(2) ** 2

    def final(self, state):
        self.seen(state)
        return (state @ self.w).squeeze(1) ** 2


@pytest.fixture(scope="module")
def system():
    stable = 0.3 * torch.eye(STATES, dtype=torch.float64).roll(1, 0)
    return LinearSystem(stable, torch.ones(STATES, CONTROLS, dtype=torch.float64) / STATES)


@pytest.mark.parametrize("block", [HORIZON, 4, 1], ids="blocks of {}".format)
def test_segments_change_no_bit_of_the_gradients_of_costs_with_products(system, block, monkeypatch):
    monkeypatch.setattr(trajectory_module, "_BLOCK_ROWS", block * BATCH)
    policy = MLP((STATES,), (CONTROLS,), (13,), **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape, low=-0.5, high=0.5))

    def initial(**cut):
        rollout = Rollout(system, policy, HORIZON, BATCH, **cut)
        rollout.forward(uniform(3, BATCH, STATES), Products())
        found = rollout.backward(RULES, Products()).initial
        return torch.stack([found[rule] for rule in RULES])

    whole = initial()
    assert whole.abs().sum((1, 2)).all()
    for length in range(1, HORIZON):
        assert torch.equal(initial(segment=length), whole)


@pytest.mark.float64
def test_only_what_is_misaligned_is_copied():
    tensor = torch.arange(40, dtype=torch.float64)
    assert aligned(tensor) is tensor
    moved = aligned(tensor[1:])
    assert moved.data_ptr() % 64 == 0
    assert torch.equal(moved, tensor[1:])

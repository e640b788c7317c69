"""Objectives: the quadratic cost against its sum, and its derivatives by hand."""

import pytest
import torch
from conftest import relative_error, uniform

from engine import FULL, LinearSystem, Rollout
from policies import Linear
from training import Objective, Quadratic

pytestmark = pytest.mark.float64

HORIZON, BATCH, WEIGHTS, R = 5, 3, (1.0, 0.1), 0.05


def total(states, controls):
    """½ Σ_{t=1..T} x_tᵀ Q x_t + ½ r Σ_{t<T} |u_t|², one term after another."""
    cost = torch.zeros(states.shape[1], dtype=states.dtype)
    for t in range(1, len(states)):
        cost = cost + 0.5 * sum(weight * states[t, :, i] ** 2 for i, weight in enumerate(WEIGHTS))
    for t in range(len(controls)):
        cost = cost + 0.5 * R * (controls[t] ** 2).sum(1)
    return cost


@pytest.mark.parametrize("width", [1, 3])
def test_the_quadratic_cost_is_its_sum(width):
    states, controls = uniform(0, HORIZON + 1, BATCH, 2), uniform(1, HORIZON, BATCH, width)
    objective = Quadratic(WEIGHTS, R)
    found = objective.running(states[:-1], controls, torch.arange(HORIZON)).sum(0) + objective.final(states[-1])
    torch.testing.assert_close(found, total(states, controls), rtol=1e-14, atol=0.0)


def test_the_first_state_costs_nothing_wherever_a_segment_begins():
    states, objective = uniform(0, 2, BATCH, 2), Quadratic(WEIGHTS, R)
    controls = torch.zeros_like(states[..., :1])
    first, second = objective.running(states, controls, torch.arange(2))
    assert not first.any()
    assert (second > 0).all()
    assert (objective.running(states, controls, torch.arange(3, 5)) > 0).all()


def test_a_rollouts_losses_are_the_sum_over_what_it_visits():
    policy = Linear((2,), (1,), dtype=torch.float64)
    policy.theta.data.copy_(uniform(2, *policy.theta.shape))
    rollout = Rollout(LinearSystem([[1.0, 0.1], [-0.02, 0.97]], [[0.0], [0.1]]), policy, HORIZON, BATCH)
    rollout.forward(uniform(3, BATCH, 2))
    losses = rollout.backward([FULL], Quadratic(WEIGHTS, R)).losses
    assert relative_error(losses, total(rollout.states, rollout.controls)) < 1e-14


def test_an_objective_without_costs_has_none():
    states, controls = uniform(0, HORIZON, BATCH, 2), uniform(1, HORIZON, BATCH, 1)
    assert Objective().running(states, controls, torch.arange(HORIZON)) is None
    assert Objective().final(states[-1]) is None

"""Rollouts inside torch's graphs: gradcheck to weights, start and parameters, what comes before and after, bad use."""

from typing import Any

import pytest
import torch
from conftest import relative_error, swing_up_states, uniform
from test_parts import (
    BATCH,
    HORIZON,
    MEMBERS,
    NAMES,
    NOISE,
    SEEDS,
    SIGHT,
    Approach,
    beyond,
    policy,
    rows,
    start,
)

import engine
from engine import FULL, PHYSICS_ONLY, AdjointError, CartPole, Observation, Rollout, ShapeError
from policies import OpenLoop
from training import differentiable

pytestmark = pytest.mark.float64
SYSTEM = CartPole(1)


def small(**options) -> Any:
    made = policy(4)
    return Rollout(SYSTEM, made, 3, 2 * MEMBERS, parameters=("pole_mass", "friction"), **options)


def given() -> Any:
    masses = torch.stack([uniform(1, 2 * MEMBERS, low=0.08, high=0.12), uniform(2, 2 * MEMBERS, low=0.1, high=0.2)], 1)
    return swing_up_states(4, 2 * MEMBERS, 1).requires_grad_(), masses.requires_grad_()


@pytest.mark.parametrize("segment", [None, 2])
def test_gradcheck_of_losses_passes(segment):
    rollout = small(segment=segment)
    call = differentiable(rollout, FULL, Approach())
    theta, (initial, masses) = rollout.controller.theta, given()
    assert torch.autograd.gradcheck(lambda x, p, _: call(x, p), (initial, masses, theta), eps=1e-6, atol=1e-7)


def test_gradcheck_of_states_and_controls_passes():
    rollout = small()
    call = differentiable(rollout)
    theta, (initial, masses) = rollout.controller.theta, given()
    assert torch.autograd.gradcheck(lambda x, p, _: call(x, p), (initial, masses, theta), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("with_objective", [True, False])
def test_gradients_reach_what_comes_before_and_after(with_objective):
    made: Any = policy(6)
    rollout = Rollout(
        CartPole(2), made, HORIZON, BATCH, observation=SIGHT, parameters=NAMES, noise=NOISE,
        end=beyond if with_objective else None,
    )  # fmt: skip
    rollout.seed_noise(SEEDS, 4)
    scale, shift = torch.tensor(1.1).double().requires_grad_(), torch.tensor(0.01).double().requires_grad_()
    weights = uniform(9, BATCH)
    call = differentiable(rollout, FULL, Approach() if with_objective else None)

    def loss(scale, shift):
        found = call(scale * start(), rows() + shift)
        if with_objective:
            return (weights * found).sum().sin()
        states, controls = found
        return (weights * states[:, :, 0].square().mean(0)).sum().sin() + controls.square().sum()

    loss(scale, shift).backward()

    def differences(leaf):
        eps = 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                leaf += sign * eps
                values.append(loss(scale, shift))
                leaf -= sign * eps
        return (values[0] - values[1]) / (2 * eps)

    for leaf in (scale, shift):
        assert relative_error(leaf.grad, differences(leaf)) < 1e-6
    direction = uniform(12, *made.theta.shape)
    found = (made.theta.grad * direction).sum()
    with torch.no_grad():
        ahead, behind = made.theta + 1e-6 * direction, made.theta - 1e-6 * direction
        values = []
        for moved in (ahead, behind):
            made.theta.copy_(moved)
            values.append(loss(scale, shift))
    assert relative_error(found, (values[0] - values[1]) / 2e-6) < 1e-6


def test_another_rule_gives_its_own_gradient():
    rollout = small()
    initial, masses = given()
    differentiable(rollout, PHYSICS_ONLY, Approach())(initial, masses).sum().backward()
    rollout.forward(initial.detach(), parameters=masses.detach())
    expected = rollout.backward([PHYSICS_ONLY], Approach())
    assert torch.equal(initial.grad, expected.initial[PHYSICS_ONLY])
    assert torch.equal(masses.grad, expected.physical[PHYSICS_ONLY])
    assert torch.equal(rollout.controller.theta.grad, 2 * expected.parameters[PHYSICS_ONLY])


def test_a_rollout_that_ran_again_is_computed_anew():
    rollout = small()
    initial, masses = given()
    call = differentiable(rollout, FULL, Approach())
    first = call(initial, masses)
    call(2 * initial.detach(), masses)
    first.sum().backward()
    found = initial.grad.clone()
    initial.grad.zero_()
    call(initial, masses).sum().backward()
    again: Any = initial.grad
    assert torch.equal(found, again)


@pytest.mark.parametrize("runs_again", [True, False])
def test_what_is_computed_again_has_the_noise_that_it_had(runs_again):
    """Without another run the segments before the last are computed again, by the sweep itself."""
    rollout = small(noise=NOISE, segment=1)
    initial, masses = given()
    call = differentiable(rollout, FULL, Approach())
    rollout.seed_noise([3, 4], 5)
    call(initial, masses).sum().backward()
    expected = initial.grad.clone()
    initial.grad.zero_()
    first = call(initial, masses)
    rollout.seed_noise(6, 7)
    other = call(initial, masses).detach() if runs_again else None
    first.sum().backward()
    assert torch.equal(initial.grad, expected)
    assert other is None or torch.equal(call(initial, masses), other)  # the later seed is back


def test_a_second_derivative_is_refused_in_a_sentence():
    rollout = small()
    initial, masses = given()
    losses = differentiable(rollout, FULL, Approach())(initial, masses)
    with pytest.raises(
        AdjointError, match=r"^Expected a rollout to be differentiated once, got create_graph=True; .*\.$"
    ):
        torch.autograd.grad(losses.sum(), initial, create_graph=True)


def test_what_cannot_be_differentiated_is_refused():
    with pytest.raises(ShapeError, match=r"^Expected a Rollout to differentiate, got a CartPole\.$"):
        differentiable(SYSTEM)  # type: ignore[arg-type]
    with pytest.raises(AdjointError, match=r"^Expected an objective for a rollout cut into segments, got none, .*\.$"):
        differentiable(small(segment=1))


def test_an_open_loop_is_trained_to_the_same_controls_as_by_torch():
    """Three steps of Adam on θ [members, T] equal those on controls that torch differentiates through its own steps."""
    from reference import cart_pole_step

    horizon = 6
    loop = OpenLoop((1,), horizon, members=2, dtype=torch.float64)
    rollout = Rollout(SYSTEM, loop, horizon, 4, observation=Observation.clock())
    theta = torch.zeros(2, horizon, dtype=torch.float64, requires_grad=True)
    mine, other = torch.optim.Adam([loop.theta], 0.1), torch.optim.Adam([theta], 0.1)
    initial = swing_up_states(3, 4, 1)
    call = differentiable(rollout, FULL, Approach())
    for _ in range(3):
        for optimiser in (mine, other):
            optimiser.zero_grad()
        call(initial).sum().backward()
        state, loss, cost = initial, 0.0, Approach()
        for t in range(horizon):
            control = theta[:, t].repeat_interleave(2).unsqueeze(1)
            loss = loss + cost.running(state[None], control[None], torch.tensor([t])).sum()
            state = cart_pole_step(state, control)
        # Approach of two poles looks at columns 2 and 3 alike.
        (loss + cost.final(state).sum()).backward()
        for optimiser in (mine, other):
            optimiser.step()
    assert loop.theta.abs().min() > 0.1
    assert relative_error(loop.theta, theta) < 1e-10
    assert engine.current().precision == "float64"

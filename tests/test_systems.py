"""Short-vector systems: step and pull-back against the oracle, differences, Taichi's own AD, and physical laws."""

import math

import pytest
import reference
import torch
from conftest import relative_error, swing_up_states, uniform
from oracles import Case, JacobianTests, SweepTests, accuracy, simulate

import engine
from engine import CartPole, Integrator, LinearSystem
from engine.launch import prepare_adjoint
from engine.loops import Loop

A = [[1.0, 0.1, 0.0], [-0.02, 0.97, 0.3], [0.5, -0.4, 1.1]]
B = [[0.0, 1.0], [0.1, 0.0], [-0.7, 0.2]]
BATCH = 5

STEPS = {
    **{f"cart-pole-{poles}": (CartPole(poles), reference.cart_pole_step) for poles in (1, 2, 3, 4)},
    "linear": (
        LinearSystem(A, B),
        lambda x, u: reference.linear_step(x.new_tensor(A), x.new_tensor(B))(x, u),
    ),
    "integrator": (Integrator(2), reference.integrator_step),
}
CASES = {
    name: Case(system, step, reach=3.0, push=3.0, of_sweep=(1e-12, 1e-5)) for name, (system, step) in STEPS.items()
}


class TestOracle(JacobianTests, SweepTests):
    cases, small, swept = CASES, tuple(CASES), tuple(CASES)


def reference_pull_back(step, state, control, adjoint):
    """(Aᵀλ, Bᵀλ) by torch autograd through the oracle, in float64."""
    leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in (state, control)]
    return torch.autograd.grad(step(*leaves), leaves, adjoint.detach().cpu().double())


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "parallel"])
@pytest.mark.parametrize("name", CASES)
def test_pull_back_equals_taichis_derivative_of_the_step(name, serial):
    system, state, control, next_adjoint = CASES[name].points()
    arguments = state, control, torch.zeros_like(state), state.new_zeros(1, 1), Loop(serial), False, 1
    adjoint, cotangent = torch.zeros_like(state), torch.zeros_like(control)
    prepare_adjoint(system._step, arguments, (adjoint, cotangent, next_adjoint.clone(), None, None, None, None))()
    expected_adjoint, expected_cotangent = system.pull_back(state, control, next_adjoint)
    assert relative_error(adjoint, expected_adjoint) < accuracy()
    assert relative_error(cotangent, expected_cotangent) < accuracy()


def energy(states):
    """½Mẋ² + ml ẋθ̇ cosθ + ⅔ml²θ̇² + mgl cosθ, which one free pole on its cart conserves."""
    _, velocity, angle, rate = states.unbind(-1)
    kinetic = 0.55 * velocity**2 + 0.05 * velocity * rate * angle.cos() + 0.05 / 3 * rate**2
    return kinetic + 0.49 * angle.cos()


@pytest.mark.float64
def test_energy_of_a_free_pole_errs_in_proportion_to_the_step_and_does_not_drift():
    state, duration, steps = swing_up_states(0, BATCH, 1), 8.0, 800
    errors = [
        (energy(simulate(CartPole(1, duration / count), state, count)) - energy(state)).abs().amax(1)
        for count in (steps, 2 * steps)
    ]
    assert 1.8 < errors[0].max() / errors[1].max() < 2.2
    first, last = errors[0][: steps // 4].max(), errors[0][-steps // 4 :].max()
    assert last < 1.5 * first


@pytest.mark.float64
def test_momentum_of_free_poles_errs_in_proportion_to_the_step():
    state, duration, steps, poles = swing_up_states(0, BATCH, 3), 1.0, 100, 3

    def momentum_error(count):
        states = simulate(CartPole(poles, duration / count), state, count)
        angles, rates = states[..., 2 : 2 + poles], states[..., 2 + poles :]
        momentum = 1.1 * states[..., 1] + 0.05 * (rates * angles.cos()).sum(-1)
        return float((momentum - momentum[0]).abs().max())

    assert 1.8 < momentum_error(steps) / momentum_error(2 * steps) < 2.2


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("poles", [1, 4])
def test_a_mirrored_cart_pole_moves_in_mirror_image(poles):
    system, state, force = CartPole(poles), swing_up_states(0, BATCH, poles), uniform(1, BATCH, 1)
    assert torch.equal(system.step(-state, -force), -system.step(state, force))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CartPole(0), engine.SettingError, "Expected cart-pole with at least 1 pole, got 0."),
        (lambda: CartPole(1, dt=0.0), engine.SettingError, "Expected a time step dt above 0 s, got 0.0."),
        (lambda: Integrator(0), engine.ShapeError, "Expected dimensions as positive integers"),
        (lambda: LinearSystem(torch.ones(2), B), engine.ShapeError, "Expected A as a matrix, got shape [2]."),
        (lambda: LinearSystem([[1.0], [1.0, 2.0]], B), engine.ShapeError, "Expected A as a matrix of numbers"),
        (lambda: LinearSystem(A, [[1.0]]), engine.ShapeError, "Expected A of shape [n, n] and B of shape [n, m]"),
        (lambda: LinearSystem([[math.inf]], [[1.0]]), engine.ShapeError, "Expected A with finite entries"),
        (lambda: LinearSystem(torch.eye(33), torch.ones(33, 1)), engine.ShapeError, "Expected at most 32 states"),
    ],
)
def test_impossible_systems_are_refused(build, error, message):
    with pytest.raises(error) as refusal:
        build()
    assert str(refusal.value).startswith(message)

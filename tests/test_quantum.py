"""The particle in a box: unitary, second order, and an adjoint that equals a dense complex solve."""

import math
from typing import Any

import pytest
import reference
import torch
from conftest import BySteps, StepCost, relative_error, tensor_options, uniform

import engine
from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, PathRule, QuantumBox, Rollout, SettingError
from policies import MLP, PolicyError
from training import Member, Trainer, build_task

SYSTEMS = {points: QuantumBox(points) for points in (2, 5, 32)}
VARIANTS = {"R": FULL, "M": PHYSICS_ONLY, "S": ONE_STEP, "N": POLICY_ONLY}


def hamiltonian(points, u):
    """Dense H [B, N, N] for fields u [B]."""
    dx = 2.0 / (points + 1)
    beside = torch.full((points - 1,), -1.0 / dx**2, dtype=u.dtype)
    fixed = torch.diag(torch.full((points,), 2.0 / dx**2, dtype=u.dtype)) + beside.diag(1) + beside.diag(-1)
    place = dx * torch.arange(1, points + 1, dtype=u.dtype)
    return fixed + u[:, None, None] * torch.diag(place)


def dense_step(state, control, dt=0.0625):
    """Crank-Nicolson by a dense complex solve; state [B, 2, N], control [B, 1]."""
    psi = torch.complex(state[:, 0], state[:, 1])
    turn = 0.5j * dt * hamiltonian(state.shape[2], control[:, 0])
    one = torch.eye(state.shape[2], dtype=turn.dtype)
    after = torch.linalg.solve(one + turn, ((one - turn) @ psi.unsqueeze(2))).squeeze(2)
    return torch.stack([after.real, after.imag], 1)


def accuracy():
    return 1e-10 if engine.current().precision == "float64" else 1e-5


@pytest.mark.vulkan
@pytest.mark.parametrize("points", SYSTEMS)
def test_a_step_equals_a_dense_solve(points):
    state, control = uniform(0, 6, 2, points), 5 * uniform(1, 6, 1)
    found = SYSTEMS[points].step(state, control)
    assert relative_error(found, dense_step(state.double(), control.double())) < accuracy()


@pytest.mark.vulkan
@pytest.mark.parametrize("points", SYSTEMS)
def test_the_pull_back_equals_autograd_of_a_dense_solve(points):
    state, control, adjoint = uniform(0, 6, 2, points), 5 * uniform(1, 6, 1), uniform(2, 6, 2, points)
    found = SYSTEMS[points].pull_back(state, control, adjoint)
    before, field = state.double().requires_grad_(), control.double().requires_grad_()
    expected = torch.autograd.grad(dense_step(before, field), (before, field), adjoint.double())
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < accuracy()


@pytest.mark.float64
@pytest.mark.parametrize("points", SYSTEMS)
def test_the_pull_back_passes_gradcheck(points):
    system = SYSTEMS[points]

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, state, control):  # type: ignore[override]
            ctx.save_for_backward(state, control)
            return system.step(state, control)

        @staticmethod
        def backward(ctx, *grads):
            state, control = ctx.saved_tensors
            return system.pull_back(state, control, grads[0].contiguous())

    inputs = uniform(0, 2, 2, points).requires_grad_(), uniform(1, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(Step.apply, inputs)


@pytest.mark.vulkan
def test_a_cotangent_is_added_to_and_the_next_adjoint_left_alone():
    system, state, control, following = SYSTEMS[5], uniform(0, 3, 2, 5), uniform(1, 3, 1), uniform(2, 3, 2, 5)
    _, expected = system.pull_back(state, control, following)
    before, cotangent, adjoint = following.clone(), torch.ones_like(control), torch.zeros_like(state)
    system.prepare_pull_back(state, control, following, adjoint, cotangent)()
    torch.testing.assert_close(cotangent, 1 + expected)
    assert torch.equal(following, before)


@pytest.mark.vulkan
def test_the_norm_is_kept():
    system = SYSTEMS[32]
    state = uniform(0, 8, 2, 32)
    state /= state.flatten(1).norm(dim=1).view(-1, 1, 1)
    for step in range(128):
        state = system.step(state, 10 * uniform(step, 8, 1))
    limit = 1e-12 if engine.current().precision == "float64" else 1e-6
    assert (state.flatten(1).double().norm(dim=1) - 1).abs().max() < limit


@pytest.mark.float64
@pytest.mark.parametrize("n", [1, 3, 32])
def test_without_a_field_an_eigenstate_only_turns(n):
    system, steps = SYSTEMS[32], 50
    wave = system.eigenstate(n)
    energy = 2.0 / system.dx**2 * (1 - math.cos(math.pi * n / 33))
    turn = (1 - 0.5j * system.dt * energy) / (1 + 0.5j * system.dt * energy)
    state, control = torch.stack([wave, torch.zeros_like(wave)]).unsqueeze(0), torch.zeros(1, 1, **tensor_options())
    for _ in range(steps):
        state = system.step(state, control)
    expected = turn**steps * wave
    torch.testing.assert_close(torch.complex(state[0, 0], state[0, 1]), expected, rtol=0.0, atol=1e-11)


@pytest.mark.float64
def test_the_error_falls_with_the_square_of_the_time_step():
    wave = (SYSTEMS[32].eigenstate(1) + SYSTEMS[32].eigenstate(2)) / math.sqrt(2)
    start = torch.stack([wave, torch.zeros_like(wave)]).unsqueeze(0)
    field = torch.full((1, 1), 2.0, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(hamiltonian(32, field[:, 0])[0])
    exact = vectors.to(torch.complex128) @ (torch.exp(-1j * values) * (vectors.T @ wave))
    errors = []
    for steps in (64, 128, 256):
        system, state = QuantumBox(32, dt=1.0 / steps), start
        for _ in range(steps):
            state = system.step(state, field)
        errors.append(float((torch.complex(state[0, 0], state[0, 1]) - exact).abs().max()))
    assert all(math.log2(errors[i] / errors[i + 1]) > 1.75 for i in range(2))


def rollout(horizon, batch=8):
    policy = MLP((2, 8), (1,), (20,), **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    policy.theta.data *= 2.0
    system = QuantumBox(8)
    state = uniform(3, batch, 2, 8)
    return policy, Rollout(system, policy, horizon, batch), state / state.flatten(1).norm(dim=1).view(-1, 1, 1)


@pytest.mark.vulkan
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_those_of_an_independent_rollout(variant):
    policy, own, initial = rollout(128)

    def running(x, u, t):
        return x[:, 0, 2] ** 2 + x[:, 1, 2] ** 2 + 0.1 * u[:, 0] ** 2

    def final(x):
        return x[:, 0, 1] ** 2 + x[:, 1, 1] ** 2

    cost = StepCost(running, final)
    own.forward(initial)
    found = own.backward([VARIANTS[variant]], cost).parameters[VARIANTS[variant]]

    def oracle(parameters, state):
        layers = policy.layers(parameters[0])
        weights, biases = [layer[0, :-1] for layer in layers], [layer[0, -1] for layer in layers]
        return reference.mlp(weights, biases, state.flatten(1))

    (expected,) = reference.gradients(
        variant, [policy.theta.detach().double()], dense_step, oracle, initial.double(), 128, running, final
    )
    # In float32 128 steps of both recursions round to about 1e-5.
    assert relative_error(found, expected) < (1e-10 if engine.current().precision == "float64" else 1e-4)


@pytest.mark.vulkan
def test_the_fused_sweep_equals_the_one_by_steps():
    _, own, initial = rollout(20)
    rules = [FULL, PHYSICS_ONLY, PathRule(0.5, 0.25)]
    slow = [BySteps(rule) for rule in rules]
    own.forward(initial)
    found = own.backward([*rules, *slow], StepCost(final=lambda x: x[:, 0, 2] ** 2 + x[:, 1, 2] ** 2))
    for rule, by_steps in zip(rules, slow, strict=True):
        assert relative_error(found.parameters[rule], found.parameters[by_steps]) < accuracy()
        assert relative_error(found.initial[rule], found.initial[by_steps]) < accuracy()


@pytest.mark.float64
@pytest.mark.parametrize("target", [3, 5])
def test_the_task_is_lost_in_full_at_the_start_and_won_in_the_target_state(target):
    task = build_task("quantum", target=target)
    states = task.initial_states(500, 0, "train", torch.float64)
    torch.testing.assert_close(states.flatten(1).norm(dim=1), torch.ones(500, dtype=torch.float64))
    objective, system = task.objective, QuantumBox(32)
    torch.testing.assert_close(objective.final(states), torch.ones(500, dtype=torch.float64))
    wave = system.eigenstate(target)
    turned = torch.stack([0.6 * wave, -0.8 * wave]).unsqueeze(0)
    torch.testing.assert_close(objective.final(turned), torch.zeros(1, dtype=torch.float64))
    weights = torch.complex(states[:, 0], states[:, 1]) @ torch.stack([system.eigenstate(n) for n in (1, 2)], 1).to(
        torch.complex128
    )
    torch.testing.assert_close(weights.abs().square().sum(1), torch.ones(500, dtype=torch.float64))
    # Both phases are uniform: their mean direction is small.
    assert (weights / weights.abs()).mean(0).abs().max() < 0.15


@pytest.mark.float64
def test_the_objective_sums_over_the_steps_from_one_on():
    task = build_task("quantum", horizon=5)
    objective: Any = task.objective
    states = uniform(0, 6, 4, 2, 32)
    running = objective.running(states[:-1], uniform(1, 5, 4, 1), torch.arange(5)).sum(0)
    expected = sum(objective.final(states[t]) for t in range(1, 6))
    torch.testing.assert_close(running + objective.final(states[5]), expected)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantumBox(1), "at least 2 points, got 1"),
        (lambda: QuantumBox(dt=-0.1), "dt above 0, got -0.1"),
        (lambda: QuantumBox().eigenstate(33), "an eigenstate from 1 to 32, got 33"),
        (lambda: build_task("quantum", target=0), "an eigenstate from 1 to 32, got 0"),
        (lambda: build_task("quantum", horizon=0), "a horizon of at least 1 step"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(SettingError, match=f"^Expected .*{message}"):
        make()


@pytest.mark.float64
def test_a_grid_too_short_for_the_policy_is_refused():
    with pytest.raises(PolicyError, match="Expected at least 3 places before every convolution"):
        Trainer(build_task("quantum", points=4), [Member()])

"""The particle in a box: unitary, second order, and an adjoint that equals a dense complex solve; its task."""

import math
from typing import Any

import pytest
import reference
import torch
from conftest import relative_error, tensor_options, uniform
from contract import simulated
from oracles import Case, JacobianTests, simulate, within
from torch.nn import functional

import engine
from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, QuantumBox, Rollout, SettingError
from engine import trajectory as trajectory_module
from policies import PolicyError
from training import Member, Trainer, build_task

# One object for all tests, since Taichi compiles the kernels of each object anew.
SYSTEMS = {points: QuantumBox(points) for points in (2, 5, 32)}
VARIANTS = {"R": FULL, "M": PHYSICS_ONLY, "S": ONE_STEP, "N": POLICY_ONLY}
BATCH = 6


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


BOUND = 1e-10, 1e-5
CASES = {points: Case(system, dense_step, BATCH, push=5.0, bound=BOUND) for points, system in SYSTEMS.items()}


class TestOracle(JacobianTests):
    cases, small = {**CASES, "many": Case(SYSTEMS[5], dense_step, 600, push=5.0, bound=BOUND)}, tuple(CASES)


@pytest.mark.float64
def test_launches_of_every_batch_share_scratch_of_the_predicted_size():
    system, state, control = QuantumBox(5), uniform(0, 4, 2, 5), uniform(1, 4, 1)
    found = torch.zeros(2, *state.shape, **tensor_options())
    launches = [system.prepare_step(state[:n], control[:n], out[:n]) for n, out in zip((2, 4), found, strict=True)]
    for launch in (*launches, *launches):
        launch()
    expected = SYSTEMS[5].step(state, control)
    assert torch.equal(found[0, :2], expected[:2])
    assert torch.equal(found[1], expected)
    small, large = (system._scratch(state[:n]) for n in (2, 4))
    assert small.data_ptr() == large.data_ptr()
    assert large.numel() * large.element_size() == system.scratch_bytes(4)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_the_norm_is_kept():
    system = SYSTEMS[32]
    state = uniform(0, 8, 2, 32)
    state /= state.flatten(1).norm(dim=1).view(-1, 1, 1)
    state = simulated(system, state, torch.stack([10 * uniform(step, 8, 1) for step in range(128)]))[-1]
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
    state = simulate(system, state, steps, control)[-1]
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
        state = simulate(QuantumBox(32, dt=1.0 / steps), start, steps, field)[-1]
        errors.append(float((torch.complex(state[0, 0], state[0, 1]) - exact).abs().max()))
    assert all(math.log2(errors[i] / errors[i + 1]) > 1.75 for i in range(2))


def convolutional(layers, state):
    """The oracle's policy by torch's convolutions; `layers` are [in + 1, out], state [B, 2, N]."""
    signal = state
    for layer in layers[:-1]:
        kernel = layer[:-1].unflatten(0, (3, -1)).permute(2, 1, 0)
        signal = torch.tanh(functional.conv1d(signal, kernel, layer[-1], 2))
    return signal.transpose(1, 2).flatten(1) @ layers[-1][:-1] + layers[-1][-1]


def miss(state):
    """1 - |⟨ψ|φ_3⟩|² for state [B, 2, 32]."""
    place = torch.arange(1, 33, dtype=state.dtype) / 33
    overlap = torch.complex(state[:, 0], state[:, 1]) @ (torch.sin(3 * math.pi * place) / 16.5**0.5).to(
        torch.complex128
    )
    return 1 - overlap.abs().square()


def quantum_rollout(**cut):
    """The task of the paper, batch 8, with a policy whose biases are not zero."""
    task = build_task("quantum")
    policy: Any = task.policy(1, **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    policy.theta.data += uniform(1, *policy.theta.shape, low=-0.05, high=0.05)
    initial = task.initial_states(8, 0, "train", tensor_options()["dtype"]).to(tensor_options()["device"])
    return task, policy, Rollout(SYSTEMS[32], policy, task.horizon, 8, **cut), initial


def check_gradients():
    task, policy, rollout, initial = quantum_rollout()
    losses = rollout.forward(initial, task.objective)
    gradients = rollout.backward(list(VARIANTS.values()), task.objective).parameters
    weights = [layer[0].cpu().double() for layer in policy.layers(policy.theta.detach())]
    start, running = initial.cpu().double(), lambda state, control, t: float(t > 0) * miss(state)
    assert rollout.horizon == 128
    with torch.no_grad():
        oracle = lambda state: convolutional(weights, state)  # noqa: E731
        expected = reference.rollout_loss(dense_step, oracle, start, 128, running, miss)
    assert relative_error(losses, expected) < within(BOUND)
    for variant, rule in VARIANTS.items():
        found = [layer[0] for layer in policy.layers(gradients[rule])]
        expected = reference.gradients(variant, weights, dense_step, convolutional, start, 128, running, miss)
        # In float32 128 steps of both recursions round to about 1e-5.
        limit = 1e-10 if engine.current().precision == "float64" else 1e-4
        assert relative_error(*(torch.cat([layer.flatten().cpu().double() for layer in layers])
                                for layers in (found, expected))) < limit, variant  # fmt: skip


@pytest.mark.cuda
@pytest.mark.vulkan
def test_gradients_of_the_task_equal_those_of_an_independent_rollout():
    check_gradients()


@pytest.mark.parametrize("block", [128, 10])
@pytest.mark.parametrize("length", [1, 7, 50])
def test_segments_of_any_length_change_no_bit(length, block, monkeypatch):
    monkeypatch.setattr(trajectory_module, "_BLOCK_ROWS", 8 * block)
    found = []
    for segment in (None, length):
        task, _, rollout, initial = quantum_rollout(segment=segment)
        pieces = []
        losses = rollout.forward(initial, task.objective)
        gradients = rollout.backward(
            [FULL], task.objective,
            inspect=lambda rule, part, adjoints, cotangents, pieces=pieces: pieces.insert(0, cotangents.clone()),
        )  # fmt: skip
        found.append((torch.cat(pieces), gradients.initial[FULL], losses, gradients.parameters[FULL]))
    whole, cut = found
    assert torch.equal(whole[0], cut[0])
    assert torch.equal(whole[1], cut[1])
    for one, other in zip(whole[2:], cut[2:], strict=True):  # sums, segment by segment
        assert relative_error(one, other) < (1e-12 if engine.current().precision == "float64" else 1e-5)


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

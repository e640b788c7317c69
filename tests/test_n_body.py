"""Gravity among bodies: step and adjoint against an oracle, its laws of conservation and its order; its task."""

import math
from functools import partial

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from contract import check_refusal
from oracles import Case, JacobianTests, accuracy, gradient_of_rollout, losses_of_training, simulate

import engine
from engine import Rollout
from engine.systems import NBody, n_body
from training import build_task

BATCH = 5


def n_body_step(state, control, masses, thrusters, dt=0.02, gravity=1.0, softening=0.1):
    """The oracle, pair by pair as the equations are written: state [B, 2·dim, N], control [B, dim, thrusters]."""
    dim = state.shape[1] // 2
    position, velocity = state[:, :dim], state[:, dim:]
    half = position + 0.5 * dt * velocity
    away = half.unsqueeze(2) - half.unsqueeze(3)  # [B, dim, i, k] = x_k - x_i
    distance = (away.square().sum(1, keepdim=True) + softening**2).sqrt()
    pull = gravity * (state.new_tensor(masses) * away / distance**3).sum(3)
    thrust = torch.zeros_like(position).index_add(2, torch.tensor(thrusters), control)
    velocity = velocity + dt * (pull + thrust)
    return torch.cat([half + 0.5 * dt * velocity, velocity], dim=1)


def masses_of(count):
    return tuple((0.1 + uniform(9, count).abs().cpu().double() / count).tolist())


OPTIONS = {
    "3": ((1.0, 1e-3, 1e-3), (1, 2), {}),
    "1": ((2.0,), (0,), {"dim": 3}),
    "4 in space": ((1.0, 0.0, 0.3, 0.2), (3, 0), {"dim": 3, "gravity": 0.7}),
    "20": (masses_of(20), (19, 4, 0), {"dt": 0.01, "softening": 0.3}),
    "200": (masses_of(200), (7,), {"dt": 0.01, "softening": 0.2}),
    "210 in space": (masses_of(210), tuple(range(210)), {"dim": 3, "dt": 0.01, "softening": 0.2}),
}
CASES = {
    name: Case(
        NBody(masses, thrusters, **options),
        partial(
            n_body_step,
            masses=masses,
            thrusters=thrusters,
            **{key: value for key, value in options.items() if key != "dim"},
        ),
    )
    for name, (masses, thrusters, options) in OPTIONS.items()
}


class TestOracle(JacobianTests):
    # 20 bodies are summed in lanes, with a rest of 4; the hundreds have every thread at work.
    cases, small = CASES, ("3", "1", "4 in space", "20")


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["4 in space", "20", "200", "210 in space"])
def test_momentum_is_kept_to_rounding(name):
    system, state, control, _ = CASES[name].points()
    masses = state.new_tensor(system.masses)
    before, after = (x[:, system.dim :] * masses for x in (state, system.step(state, torch.zeros_like(control))))
    kicks = (after - before).abs().sum(2)
    assert kicks.min() > 1e-4
    drift = (after.sum(2) - before.sum(2)).abs().max()
    assert drift < 10 * torch.finfo(state.dtype).eps * before.abs().sum(2).max()


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("dim", [2, 3])
def test_two_equal_bodies_pull_each_other_exactly_as_much(dim):
    system = NBody((0.5, 0.5), (0,), dim)
    state = uniform(0, BATCH, 2 * dim, 2)
    state[:, dim:] = 0.0
    after = system.step(state, torch.zeros(BATCH, dim, 1, **tensor_options()))[:, dim:]
    assert torch.equal(after[:, :, 0], -after[:, :, 1])
    assert after.abs().max() > 1e-3


def energy(system, states):
    """Kinetic and potential energy [...] of states [..., 2·dim, N]."""
    masses = states.new_tensor(system.masses)
    position, velocity = states[..., : system.dim, :], states[..., system.dim :, :]
    away = position.unsqueeze(-1) - position.unsqueeze(-2)
    inverse = (away.square().sum(-3) + system.softening**2).rsqrt()
    pairs = masses.unsqueeze(1) * masses * (1 - torch.eye(len(masses), **tensor_options()))
    kinetic = 0.5 * (masses * velocity.square().sum(-2)).sum(-1)
    return kinetic - 0.5 * system.gravity * (pairs * inverse).sum((-2, -1))


def planets(dim):
    """A star and two planets in orbit about it, tilted in space."""
    state = torch.zeros(1, 2 * dim, 3, **tensor_options())
    for body, radius in ((1, 1.0), (2, 1.7)):
        state[0, 0, body] = radius
        speed = radius / (radius**2 + 0.01) ** 0.75
        state[0, dim + 1, body] = 0.9 * speed * math.cos(0.3)
        state[0, 2 * dim - 1, body] += 0.9 * speed * math.sin(0.3)
    return state


def energy_drift(system, steps):
    """|E(t) / E(0) - 1| [steps + 1] of planets without thrust."""
    energies = energy(system, simulate(system, planets(system.dim), steps))
    return (energies / energies[0] - 1).abs().flatten()


@pytest.mark.float64
@pytest.mark.parametrize("dim", [2, 3])
def test_energy_drifts_with_the_square_of_the_time_step(dim):
    coarse, fine = (
        energy_drift(NBody((1.0, 1e-2, 1e-2), dim=dim, dt=20.0 / steps), steps).max() for steps in (1000, 2000)
    )
    assert 2 - 0.25 < math.log2(coarse / fine) < 2 + 0.25
    assert fine < 1e-4


@pytest.mark.float64
@pytest.mark.parametrize("dim", [2, 3])
def test_energy_does_not_drift_with_time(dim):
    # One massive planet, so that every orbit is like the last; six of them.
    drift = energy_drift(NBody((1.0, 1e-2, 0.0), dim=dim, dt=0.04), 1000)
    assert drift[500:].max() < 1.02 * drift[:500].max()


@pytest.mark.float64
def test_angular_momentum_is_kept():
    system = NBody((1.0, 1e-2, 1e-2))
    states = simulate(system, planets(2), 500)
    masses = states.new_tensor(system.masses)
    spin = (masses * (states[:, :, 0] * states[:, :, 3] - states[:, :, 1] * states[:, :, 2])).sum(-1)
    torch.testing.assert_close(spin, spin[:1].expand_as(spin), rtol=1e-12, atol=1e-13)


@pytest.mark.float64
def test_the_step_undoes_itself_when_velocities_turn_round():
    system, state, control, _ = CASES["4 in space"].points()
    turn = lambda x: torch.cat([x[:, :3], -x[:, 3:]], dim=1)  # noqa: E731
    back = turn(system.step(turn(system.step(state, control)), control))
    torch.testing.assert_close(back, state, rtol=1e-13, atol=1e-13)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_one_body_flies_straight_under_its_thrust():
    system, state, control, _ = CASES["1"].points()
    velocity = state[:, 3:] + 0.02 * control
    expected = torch.cat([state[:, :3] + 0.01 * (state[:, 3:] + velocity), velocity], dim=1)
    torch.testing.assert_close(system.step(state, control), expected)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["4 in space", "200"])
def test_coincident_bodies_exert_no_force_and_have_the_softened_gradient(name):
    system, state, control, next_adjoint = CASES[name].points()
    state[:], control[:] = 0.5, 0.0
    after = system.step(state, control)
    torch.testing.assert_close(after[:, system.dim :], state[:, system.dim :])
    adjoint, _ = system.pull_back(state, control, next_adjoint)
    masses, half = state.new_tensor(system.masses), 0.5 * system.dt
    kick = next_adjoint[:, system.dim :] + half * next_adjoint[:, : system.dim]
    # At r = 0 the Jacobian is 1/ε³.
    gathered = masses * kick.sum(2, keepdim=True) - masses.sum() * kick
    expected = next_adjoint[:, : system.dim] + system.dt * system.gravity / system.softening**3 * gathered
    assert relative_error(adjoint[:, : system.dim], expected) < accuracy()


@pytest.mark.float64
def test_motion_is_stable_just_below_the_longest_step_and_not_above(monkeypatch):
    state = torch.zeros(1, 4, 2, **tensor_options())
    state[0, 0] = torch.tensor([-1e-6, 1e-6])  # so near that the pull is linear
    masses, longest = (0.5, 0.5), 2 * math.sqrt(0.1**3)
    assert n_body.longest_dt(masses, 1.0, 0.1) == pytest.approx(longest)
    below = NBody(masses, (0,), dt=0.99 * longest)
    assert simulate(below, state, 1000)[:, :, :2].abs().max() < 2e-5
    monkeypatch.setattr(n_body, "longest_dt", lambda *_: math.inf)
    above = NBody(masses, (0,), dt=1.01 * longest)
    assert simulate(above, state, 200)[:, :, :2].abs().max() > 2e-4


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masses": ()}, "at least 1 body, each of a finite mass of at least 0, got ()."),
        ({"masses": (1.0, -1.0)}, "at least 1 body, each of a finite mass of at least 0, got (1.0, -1.0)."),
        ({"masses": (math.nan,)}, "at least 1 body, each of a finite mass of at least 0, got (nan,)."),
        ({"dim": 4}, "n-body in 2 or 3 dimensions, got 4."),
        ({"thrusters": ()}, "thrusters as one or more different bodies below 3, got ()."),
        ({"thrusters": (1, 1)}, "thrusters as one or more different bodies below 3, got (1, 1)."),
        ({"thrusters": (3,)}, "thrusters as one or more different bodies below 3, got (3,)."),
        ({"softening": 0.0}, "a softening above 0, got 0.0."),
        ({"gravity": -1.0}, "a gravity of at least 0, got -1.0."),
        ({"dt": 0.0}, "a time step dt above 0 and below 2 √(ε³ / (G Σm)) = 0.06318, got 0.0."),
        ({"dt": 0.1}, "a time step dt above 0 and below 2 √(ε³ / (G Σm)) = 0.06318, got 0.1."),
        ({"dt": math.nan}, "a time step dt above 0 and below 2 √(ε³ / (G Σm)) = 0.06318, got nan."),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(engine.SettingError) as refusal:
        NBody(**settings)
    assert str(refusal.value) == f"Expected {message}"


def test_the_law_has_no_limit_on_the_step_without_gravity():
    assert NBody((1.0,), (0,), gravity=0.0, dt=100.0).dt == 100.0


@pytest.mark.float64
@pytest.mark.parametrize("dim", [2, 3])
def test_satellites_start_on_circles_and_stay_on_them(dim):
    task = build_task("n-body", satellites=1, satellite_mass=0.0, dim=dim, dt=0.01)
    start = task.initial_states(BATCH, 0, "train", torch.float64).to(engine.current().device)
    assert not start[:, :, 0].any()
    assert dim == 2 or start[:, 2].abs().max() > 0.05
    states = simulate(task.system, start, 300)
    distance = states[:, :, :dim, 1].norm(dim=2)
    assert 0.75 <= distance[0].min() < distance[0].max() <= 1.2
    # What leapfrog makes of a circle: a ripple of order dt².
    assert (distance / distance[0] - 1).abs().max() < 1e-3


@pytest.mark.float64
def test_the_cost_of_an_orbit_is_its_formula():
    task = build_task("n-body", satellites=2, dim=3, radius=2.0, regularisation=0.5, horizon=7)
    state = torch.zeros(1, 6, 3, **tensor_options())
    speed = 2.0 / (4.01**0.75)
    state[0, :3] = 1.0  # the star, and with it everything, is elsewhere
    state[0, 0, 1], state[0, 4, 1] = 3.0, speed  # on the orbit
    assert task.objective.final(state[:, :, :2]).item() == pytest.approx(0.0, abs=1e-12)
    state[0, 1, 2], state[0, 2, 2] = 4.0, 2.0  # 3 along y and 1 along z, at rest
    expected = (0.0 + (3 / 2 - 1) ** 2 + 1.0 + 0.25) / 2
    assert task.objective.final(state).item() == pytest.approx(expected)
    state[0, 5, 2] = 0.1
    assert task.objective.final(state).item() == pytest.approx(expected + 0.5 * (0.1 / speed) ** 2)
    controls = uniform(0, 7, 1, 3, 2)
    running = task.objective.running(state.expand(7, 1, 6, 3), controls, torch.arange(7))
    torch.testing.assert_close(running.sum(0), 0.5 * controls.square().mean((0, 2, 3)))
    assert task.objective.final(torch.zeros(1, 6, 2, **tensor_options()).requires_grad_()).isfinite().all()


@pytest.mark.float64
def test_gradients_of_a_rollout_equal_autograd_through_the_oracle():
    task = build_task("n-body", horizon=20)
    policy = task.policy(1, **tensor_options())
    policy.theta.data.copy_(0.3 * uniform(0, *policy.theta.shape))
    rollout = Rollout(task.system, policy, 20, BATCH)
    start = task.initial_states(BATCH, 0, "train", torch.float64)
    rollout.forward(start)
    found = rollout.backward([engine.FULL], task.objective).parameters[engine.FULL]
    step = partial(n_body_step, masses=(1.0, 0.01, 0.01), thrusters=(1, 2), dt=0.04)
    assert relative_error(found, gradient_of_rollout(task, policy, step, start)) < 1e-10


@pytest.mark.float64
def test_training_brings_satellites_nearer_to_their_orbit():
    losses = losses_of_training(build_task("n-body", satellites=1), 16, 40, 3e-3)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.float64
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"satellites": 0}, "n-body with at least 1 satellite, got 0"),
        ({"satellite_mass": -1.0}, "at least 1 body, each of a finite mass of at least 0, got"),
        ({"radius": 0.0}, "a radius above 0, got 0.0"),
        ({"regularisation": -1.0}, "a regularisation of at least 0, got -1.0"),
        ({"dt": 0.1}, "a time step dt above 0 and below"),
        ({"horizon": 0}, "a horizon of at least 1 step, got 0"),
    ],
)
def test_impossible_tasks_are_refused(options, message):
    check_refusal(partial(build_task, "n-body"), options, message)

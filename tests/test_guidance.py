"""Guidance by repulsion: step, adjoint and sweeps against an oracle and physical laws; its task."""

import math
from functools import partial

import pytest
import torch
from conftest import StepCost, relative_error, tensor_options, uniform
from contract import check_refusal, prepare_sweep, simulated, sweep_buffers
from oracles import Case, DirectionTests, JacobianTests, SweepTests, accuracy
from test_rollout import check_path_rules, random_policy

import engine
from engine import Rollout
from engine.systems import Guidance
from policies import MLP
from training import build_task
from training.tasks.herd import Herd

BATCH = 5


def guidance_step(state, control, dt=4 / 60, mean_centre=False, reversed_flocking=False):
    """The oracle, pair by pair as the equations are written: state [B, 4, N], control [B, 2, D], N = D + E."""
    drivers, particles = control.shape[2], state.shape[2]
    position, velocity = state[:, :2], state[:, 2:]
    herd = position[:, :, drivers:]
    r = position[:, :, :drivers] - (herd.mean if mean_centre else herd.sum)(2, keepdim=True)
    turned = torch.stack([-r[:, 1], r[:, 0]], dim=1)
    steering = control[:, :1] * r + control[:, 1:] * turned

    # [B, 2, i, k] from k to i; a particle and itself are set apart, so that no root is taken of 0.
    away = position.unsqueeze(3) - position.unsqueeze(2)
    apart = torch.eye(particles, dtype=state.dtype)
    distance = 0.1 + (away.square().sum(1, keepdim=True) + apart).sqrt()
    squared = away / distance**2
    phi = (0.5 / distance - 1) / distance
    flock = (-1 if reversed_flocking else 1) * 0.2 * (-phi * away)[:, :, drivers:, drivers:].sum(3)
    flight = 15 * squared[:, :, drivers:, :drivers].sum(3)
    separation = 0.2 * squared[:, :, :drivers, :drivers].sum(3)

    drive = steering - velocity[:, :, :drivers] + separation
    flee = flight - 4 * velocity[:, :, drivers:] + flock
    acceleration = torch.cat([drive, flee], dim=2)
    return torch.cat([position + dt * velocity, velocity + dt * acceleration], dim=1)


OPTIONS = {
    "2-4": (2, 4, {}),
    "1-1": (1, 1, {}),
    "3-2": (3, 2, {"mean_centre": True}),
    "2-18": (2, 18, {"reversed_flocking": True, "dt": 0.1}),
    "17-150": (17, 150, {"mean_centre": True}),
}
*SMALL, LARGE = OPTIONS
CASES = {
    name: Case(Guidance(drivers, evaders, **options), partial(guidance_step, **options), reach=2.0)
    for name, (drivers, evaders, options) in OPTIONS.items()
}


class TestOracle(DirectionTests, JacobianTests, SweepTests):
    # 18 evaders are summed in lanes, with a rest of 2; the large herd has every thread at work, and drivers in lanes.
    cases, small, large, swept = CASES, SMALL, (LARGE,), SMALL
    # The third derivative is of order 15/ε² = 1500.
    departure = 1e-7


def started(name):
    """A system and the buffers of a sweep along one step of it."""
    system, state, control, _ = CASES[name].points()
    return system, sweep_buffers(system, simulated(system, state, control.unsqueeze(0)), control.unsqueeze(0))


@pytest.mark.float64
def test_large_herds_have_no_fused_sweep():
    small, large = (prepare_sweep(*started(name), slice(0, BATCH), engine.FULL) for name in ("2-4", LARGE))
    assert small is not None
    assert large is None


def herd_cost(horizon):
    """The paper's loss with rc = 0.1, on flat states [B, 24] and controls [B, 4]."""
    away = lambda state: state.view(-1, 4, 6)[:, :2, 2:].square().mean((1, 2)) / horizon  # noqa: E731
    effort = lambda control: 0.1 * control.square().mean(1) / horizon  # noqa: E731
    return StepCost(lambda state, control, t: effort(control) + (away(state) if t else 0.0), away)


def flat_guidance_step(state, control):
    return guidance_step(state.view(-1, 4, 6), control.view(-1, 2, 2)).flatten(1)


def check_gradients(horizon, batch=8):
    task = build_task("guidance", horizon=horizon)
    policy = random_policy(MLP, (4, 6), (2, 2), (100, 100))
    rollout = Rollout(CASES["2-4"].system, policy, horizon, batch)
    initial = task.initial_states(batch, 0, "train", engine.current().dtype).to(engine.current().device)
    check_path_rules(rollout, policy, initial, task.objective, flat_guidance_step, herd_cost(horizon), slowly=True)


@pytest.mark.cuda
def test_gradients_of_every_path_rule_equal_the_oracle():
    check_gradients(60)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_gradients_of_a_short_rollout_equal_the_oracle_on_vulkan_too():
    check_gradients(10)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_pair_forces_add_up_to_nothing():
    plain, reversed_flocking = CASES[LARGE].system, Guidance(17, 150, mean_centre=True, reversed_flocking=True)
    state, control = uniform(0, BATCH, 4, 167, low=-2, high=2), torch.zeros(BATCH, 2, 17, **tensor_options())
    state[:, 2:] = 0.0
    ahead, behind = (system.step(state, control)[:, 2:] for system in (plain, reversed_flocking))
    drivers, flock = ahead[:, :, :17], (ahead - behind)[:, :, 17:]
    for force in (drivers, flock):
        assert force.sum(2).abs().max() < 100 * torch.finfo(force.dtype).eps * ahead.abs().max()
        assert force.abs().max() > 1e-3


@pytest.mark.float64
@pytest.mark.parametrize("reversed_flocking", [False, True])
def test_two_evaders_attract_nearer_than_the_spacing_and_repel_beyond_as_released(reversed_flocking):
    system, control = Guidance(1, 2, reversed_flocking=reversed_flocking), torch.zeros(2, 2, 1, **tensor_options())
    state = torch.zeros(2, 4, 3, **tensor_options())
    state[:, 1, 0] = 1e9  # the driver, too far to matter
    state[:, 0, 1], state[:, 0, 2] = torch.tensor([-0.15, -0.25], **tensor_options()), torch.tensor([0.15, 0.25])
    closing = system.step(state, control)[:, 2, 1]
    d = torch.tensor([0.4, 0.6], **tensor_options())
    expected = (-1 if reversed_flocking else 1) * 4 / 60 * 0.2 * (0.5 / d - 1) / d * (d - 0.1)
    torch.testing.assert_close(closing, expected, rtol=0, atol=1e-8)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", CASES)
def test_a_turned_plane_moves_as_turned(name):
    system, state, control, next_adjoint = CASES[name].points()
    turn = lambda s: torch.stack([-s[:, 1], s[:, 0], -s[:, 3], s[:, 2]], dim=1)  # noqa: E731
    torch.testing.assert_close(system.step(turn(state), control), turn(system.step(state, control)))
    adjoint, cotangent = system.pull_back(state, control, next_adjoint)
    turned_adjoint, turned_cotangent = system.pull_back(turn(state), control, turn(next_adjoint))
    assert relative_error(turned_adjoint, turn(adjoint)) < accuracy()
    assert relative_error(turned_cotangent, cotangent) < accuracy()


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["3-2", LARGE])
def test_coincident_particles_exert_no_force_and_have_a_defined_gradient(name):
    system = CASES[name].system
    drivers, evaders = system.drivers, system.evaders
    state = torch.full((1, *system.state_shape), 0.5, **tensor_options())
    control, next_adjoint = uniform(1, 1, *system.control_shape), uniform(2, 1, *system.state_shape)
    ahead = system.step(state, control)
    damping = torch.tensor([1.0] * drivers + [4.0] * evaders, **tensor_options())
    torch.testing.assert_close(ahead[0, 2:], (0.5 - 4 / 60 * damping * 0.5).expand(2, -1))

    adjoint, cotangent = system.pull_back(state, control, next_adjoint)
    # Where |r| counts as constant, every force w r has the Jacobian w(ε): 15/ε² from drivers, 0.2 (1 - 0.5/ε)/ε else.
    to_acceleration = 4 / 60 * next_adjoint[0, 2:]
    herd, shepherds = to_acceleration[:, drivers:], to_acceleration[:, :drivers]
    steered = torch.stack([control[0, 0] * shepherds[0] + control[0, 1] * shepherds[1],
                           control[0, 0] * shepherds[1] - control[0, 1] * shepherds[0]])  # fmt: skip
    flock = 0.2 * (1 - 0.5 / 0.1) / 0.1 * (evaders * herd - herd.sum(1, keepdim=True))
    expected = next_adjoint[0, :2, drivers:] + drivers * 1500 * herd + flock - steered.sum(1, keepdim=True) / evaders
    torch.testing.assert_close(adjoint[0, :2, drivers:], expected, rtol=1e-5, atol=1e-4)
    assert torch.isfinite(adjoint).all()
    assert cotangent.abs().max() < 1e-5  # r = 0


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drivers": 0}, "guidance with at least 1 driver, got 0."),
        ({"evaders": -1}, "guidance with at least 1 evader, got -1."),
        ({"evaders": 2.5}, "guidance with at least 1 evader, got 2.5."),
        ({"dt": -0.1}, "a time step dt above 0, got -0.1."),
    ],
)
def test_impossible_settings_are_refused_by_system_and_task(settings, message):
    for build in (Guidance, partial(build_task, "guidance")):
        check_refusal(build, settings, message)


@pytest.mark.float64
def test_impossible_tasks_are_refused():
    with pytest.raises(engine.SettingError, match=r"Expected a regularisation of at least 0, got -1"):
        build_task("guidance", regularisation=-1)
    with pytest.raises(engine.SettingError, match="Expected a horizon of at least 1 step, got 0"):
        build_task("guidance", horizon=0)


@pytest.mark.float64
def test_initial_states_rest_in_their_annuli():
    task = build_task("guidance", drivers=3, evaders=5)
    states = task.initial_states(400, 0, "train", torch.float64)
    assert states.shape == (400, 4, 8)
    assert not states[:, 2:].any()
    radius = states[:, :2, :3].norm(dim=1)
    assert 3.0 <= radius.min() < 3.05
    assert 3.95 < radius.max() <= 4.0
    assert abs(radius.mean() - 3.5) < 0.03  # four standard errors of U(3, 4)
    herd = states[:, :2, 3:]
    assert 0.9 < (herd.amax(2) - herd.amin(2)).max() <= 1.0
    distance = herd.mean(2).norm(dim=1)
    assert 1.0 - 0.5 * math.sqrt(2) < distance.min() < distance.max() < 2.0 + 0.5 * math.sqrt(2)
    # Every direction is as likely, for drivers and herds alike.
    for places in (states[:, :2, 0], herd.mean(2)):
        assert (places / places.norm(dim=1, keepdim=True)).mean(0).abs().max() < 4 * math.sqrt(0.5 / 400)


@pytest.mark.float64
def test_loss_is_the_mean_over_steps_evaders_and_axes_plus_the_mean_control():
    options = {"regularisation": 0.5, "target_x": 1.0, "target_y": -2.0, "mean_centre": True, "reversed_flocking": True}
    task = build_task("guidance", horizon=7, drivers=3, evaders=2, **options)
    policy = random_policy(MLP, (4, 5), (2, 3), (6,))
    rollout = Rollout(task.system, policy, 7, BATCH)
    losses = rollout.forward(task.initial_states(BATCH, 0, "test", torch.float64), task.objective)
    away = rollout.states[1:, :, :2, 3:] - torch.tensor([1.0, -2.0], **tensor_options()).view(2, 1)
    expected = away.square().mean((0, 2, 3)) + 0.5 * rollout.controls.square().mean((0, 2, 3))
    torch.testing.assert_close(losses, expected)
    step = guidance_step(rollout.states[0], rollout.controls[0], mean_centre=True, reversed_flocking=True)
    torch.testing.assert_close(rollout.states[1], step)


@pytest.mark.float64
def test_the_default_task_is_the_papers():
    task = build_task("guidance")
    assert isinstance(task.system, Guidance)
    assert isinstance(task.objective, Herd)
    policy = task.policy(1, **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    assert (task.system.drivers, task.system.evaders, task.horizon, task.objective.regularisation) == (2, 4, 60, 0.1)
    assert policy.widths == (24, 100, 100, 4)
    assert not policy(uniform(0, 1, BATCH, 4, 6)).any()
    assert task.system.dt * task.horizon == pytest.approx(4.0)

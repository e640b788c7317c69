"""The chain of links on a cart: step, adjoint and sweeps against an oracle and mechanics; its task."""

import math
from functools import partial

import pytest
import reference
import torch
from conftest import StepCost, relative_error, swing_up_states, tensor_options, uniform
from contract import check_refusal
from oracles import Case, JacobianTests, SweepTests, simulate
from test_rollout import check_path_rules, random_policy

from engine import CartPole, Rollout
from engine.systems import CartPendulum
from policies import MLP
from training import build_task

BATCH = 5
# One object for all tests, since Taichi compiles the kernels of each object anew.
SYSTEMS = {links: CartPendulum(links) for links in (1, 2, 3, 4)}


def centres(angle):
    """Where the rods' centres are, seen from the cart, and the Jacobians [B, n, n] of both coordinates by the angles.

    Rod k moves the centre of rod i by its whole length if it comes before, by half of it if it is the same.
    """
    links = angle.shape[1]
    reach = torch.ones(links, links, dtype=angle.dtype).tril(-1) + 0.5 * torch.eye(links, dtype=angle.dtype)
    sine, cosine = angle.sin().unsqueeze(1), angle.cos().unsqueeze(1)
    return (reach * sine).sum(2), (reach * cosine).sum(2), reach * cosine, -reach * sine


def accelerations(angle, rate, force):
    """Newton's law for the rods' centres, projected on the coordinates (x, θ): [B, 1 + n]."""
    _, _, to_x, to_y = centres(angle)
    links = angle.shape[1]
    to_x = torch.cat([torch.ones_like(to_x[..., :1]), to_x], dim=2)
    to_y = torch.cat([torch.zeros_like(to_y[..., :1]), to_y], dim=2)
    turning = torch.tensor([1.0] + [0.1 / 12] * links, dtype=angle.dtype).diag()  # the cart, and mass·length²/12
    mass = turning + 0.1 * (to_x.mT @ to_x + to_y.mT @ to_y)
    squared = torch.cat([torch.zeros_like(force), rate**2], dim=1).unsqueeze(2)
    # d²/dt² (sinθ, cosθ) at constant rate is -(sinθ, cosθ) θ̇².
    inward_x, inward_y = to_y @ squared, -(to_x - torch.eye(1, links + 1, dtype=angle.dtype)) @ squared
    push = torch.cat([force, torch.zeros_like(angle)], dim=1).unsqueeze(2)
    load = push - 0.1 * (to_x.mT @ inward_x + to_y.mT @ (inward_y + 9.8))
    return torch.linalg.solve(mass, load).squeeze(2)


def cart_pendulum_step(state, control, dt=0.01):
    """The oracle: one step of the classical Runge-Kutta method. state [B, 2 + 2n], control [B, 1]."""
    links = (state.shape[1] - 2) // 2

    def slope(state):
        _, velocity, angle, rate = state.split([1, 1, links, links], dim=1)
        acceleration = accelerations(angle, rate, control)
        return torch.cat([velocity, acceleration[:, :1], rate, acceleration[:, 1:]], dim=1)

    first = slope(state)
    second = slope(state + dt / 2 * first)
    third = slope(state + dt / 2 * second)
    fourth = slope(state + dt * third)
    return state + dt / 6 * (first + 2 * second + 2 * third + fourth)


def energy(state):
    """Kinetic and potential energy [...] of states [..., 2 + 2n], from the motion of every rod's centre."""
    flat = state.reshape(-1, state.shape[-1])
    links = (flat.shape[1] - 2) // 2
    _, velocity, angle, rate = flat.split([1, 1, links, links], dim=1)
    _, height, to_x, to_y = centres(angle)
    across, up = velocity + (to_x @ rate.unsqueeze(2)).squeeze(2), (to_y @ rate.unsqueeze(2)).squeeze(2)
    kinetic = 0.5 * velocity.square().sum(1) + 0.05 * (across**2 + up**2).sum(1) + 0.1 / 24 * rate.square().sum(1)
    return (kinetic + 0.98 * height.sum(1)).view(state.shape[:-1])


def momentum(state):
    """Horizontal momentum [...] of states [..., 2 + 2n]."""
    flat = state.reshape(-1, state.shape[-1])
    links = (flat.shape[1] - 2) // 2
    _, velocity, angle, rate = flat.split([1, 1, links, links], dim=1)
    across = velocity + (centres(angle)[2] @ rate.unsqueeze(2)).squeeze(2)
    return (velocity.sum(1) + 0.1 * across.sum(1)).view(state.shape[:-1])


CASES = {links: Case(system, cart_pendulum_step, reach=3.0, push=3.0) for links, system in SYSTEMS.items()}


class TestOracle(JacobianTests, SweepTests):
    cases = CASES
    small, swept = tuple(SYSTEMS), (2, 4)


def check_gradients(links, horizon, batch=8):
    policy = random_policy(MLP, (2 + 2 * links,), (1,), (100, 100))
    # Not every seed: where samples nearly cancel, float32 leaves the oracle itself no better than 1e-5.
    rollout, initial = Rollout(SYSTEMS[links], policy, horizon, batch), swing_up_states(3, batch, links)
    cost = StepCost(final=reference.swing_up_cost)
    check_path_rules(rollout, policy, initial, cost, cart_pendulum_step, cost, slowly=True)


@pytest.mark.cuda
@pytest.mark.parametrize("links", [2, 4])
def test_gradients_of_every_path_rule_equal_the_oracle(links):
    check_gradients(links, 100)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_gradients_of_a_short_rollout_equal_the_oracle_on_vulkan_too():
    check_gradients(2, 10)


@pytest.mark.float64
@pytest.mark.parametrize("conserved", [energy, momentum])
@pytest.mark.parametrize("links", SYSTEMS)
def test_a_free_pendulum_conserves_energy_and_momentum_to_its_order(links, conserved):
    state, duration, steps = swing_up_states(0, BATCH, links), 2.0, 100
    errors = [
        (conserved(simulate(CartPendulum(links, duration / count), state, count)) - conserved(state)).abs().max()
        for count in (steps, 2 * steps)
    ]
    assert math.log2(errors[0] / errors[1]) > 4 - 0.25
    assert errors[1] < 1e-4


@pytest.mark.float64
def test_energy_grows_by_the_work_of_the_force():
    state, force = swing_up_states(0, BATCH, 3), uniform(1, BATCH, 1)
    states = simulate(SYSTEMS[3], state, 100, force)
    work = force[:, 0] * (states[-1, :, 0] - state[:, 0])
    assert work.abs().max() > 0.1
    torch.testing.assert_close(energy(states[-1]) - energy(state), work, rtol=0, atol=1e-6)


@pytest.mark.float64
def test_one_link_is_the_cart_pole_with_one_pole():
    state, force, duration = swing_up_states(0, BATCH, 1), uniform(1, BATCH, 1), 0.5
    exact = simulate(SYSTEMS[1], state, 50, force)[-1]
    errors = [
        relative_error(simulate(CartPole(1, duration / count), state, count, force)[-1], exact) for count in (100, 200)
    ]
    # Only the cart-pole's integrator, of first order, keeps them apart.
    assert 1.9 < errors[0] / errors[1] < 2.1


@pytest.mark.float64
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (math.pi, math.pi, math.pi), (0.0, math.pi, 0.0)])
def test_a_chain_in_a_vertical_line_stays_there(angles):
    state = torch.zeros(1, 8, **tensor_options())
    state[0, 2:5] = torch.tensor(angles, **tensor_options())
    moved = SYSTEMS[3].step(state, torch.zeros(1, 1, **tensor_options()))
    torch.testing.assert_close(moved, state, rtol=0, atol=1e-14)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("links", [1, 4])
def test_a_mirrored_pendulum_moves_in_mirror_image(links):
    state, force = swing_up_states(0, BATCH, links), uniform(1, BATCH, 1)
    assert torch.equal(SYSTEMS[links].step(-state, -force), -SYSTEMS[links].step(state, force))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"links": 0}, "cart-pendulum with 1 to 4 links, got 0."),
        ({"links": 5}, "cart-pendulum with 1 to 4 links, got 5."),
        ({"links": 1.0}, "cart-pendulum with 1 to 4 links, got 1.0."),
        ({"dt": -0.01}, "a time step dt above 0 s, got -0.01."),
    ],
)
def test_impossible_settings_are_refused_by_system_and_task(settings, message):
    for build in (CartPendulum, partial(build_task, "cart-pendulum")):
        check_refusal(build, settings, message)


@pytest.mark.float64
def test_the_task_swings_up_hanging_links():
    task = build_task("cart-pendulum", links=3, horizon=7, dt=0.02)
    assert isinstance(task.system, CartPendulum)
    assert (task.name, task.horizon, task.system.dt, task.system.links) == ("cart-pendulum", 7, 0.02, 3)
    states = task.initial_states(500, 0, "train", torch.float64)
    angles = states[:, 2:5] - math.pi
    others = states[:, [0, 1, 5, 6, 7]]
    for draws, bound in ((angles, math.pi / 6), (others, 1.0)):
        assert 0.95 * bound < draws.abs().amax(0).min() <= draws.abs().max() <= bound
    hanging, upright = torch.zeros(2, 1, 8, **tensor_options())
    hanging[:, 2:5] = math.pi
    upright[:, 0] = 3.0
    torch.testing.assert_close(task.objective.final(hanging), torch.full((1,), 2.0, **tensor_options()))
    assert task.objective.final(upright) == 0
    policy = task.policy(1, **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    assert policy.widths == (8, 100, 100, 1)
    assert not policy(states[None, :BATCH]).any()

"""Physical parameters of guidance, swarm, N-body, quantum and fluid, and goals that vary, beside independent torch."""

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from test_parameters import launch_pull_back, launch_step, varied
from test_quantum import dense_step

import engine
from engine import FULL, Guidance, NBody, QuantumBox, Rollout, Swarm
from engine.system import PULL_BACK_LAUNCH_BYTES
from engine.systems import Fluid, Held
from training import build_task

BATCH = 3


def accuracy():
    return 1e-10 if engine.current().precision == "float64" else 2e-4


def herd_step(sign, radius, dt=4 / 60):
    """Guidance pair by pair, with a window of the flocking; parameters [B, 3]."""

    def step(state, control, parameters):
        drivers = control.shape[2]
        separation, flight, flocking = (column.view(-1, 1, 1, 1) for column in parameters.unbind(1))
        position, velocity = state[:, :2], state[:, 2:]
        r = position[:, :, :drivers] - position[:, :, drivers:].sum(2, keepdim=True)
        steering = control[:, :1] * r + control[:, 1:] * torch.stack([-r[:, 1], r[:, 0]], 1)
        away = position.unsqueeze(3) - position.unsqueeze(2)
        length = (away.square().sum(1, keepdim=True) + torch.eye(state.shape[2], dtype=state.dtype)).sqrt()
        distance = 0.1 + length
        window = 1.0
        if radius is not None:
            s = (4 / 3 * (1 - (length / radius) ** 2)).clamp(0, 1)
            window = s**2 * (3 - 2 * s)
        flock = sign * flocking * window * (-(0.5 / distance - 1) / distance * away)
        away = away / distance**2
        drive = steering - velocity[:, :, :drivers] + (separation * away[:, :, :drivers, :drivers]).sum(3)
        flee = (flight * away[:, :, drivers:, :drivers]).sum(3) + flock[:, :, drivers:, drivers:].sum(3)
        acceleration = torch.cat([drive, flee - 4 * velocity[:, :, drivers:]], 2)
        return torch.cat([position + dt * velocity, velocity + dt * acceleration], 1)

    return step


def bodies_step(masses, thrusters, dt=0.02):
    """Leapfrog pair by pair; parameters [B, 3]."""

    def step(state, control, parameters):
        dim = state.shape[1] // 2
        gravity, softening, first = (column.view(-1, 1, 1, 1) for column in parameters.unbind(1))
        own = torch.tensor(masses, dtype=state.dtype).expand(len(state), 1, 1, -1)
        own = torch.cat([first, own[..., 1:]], 3)
        half = state[:, :dim] + 0.5 * dt * state[:, dim:]
        away = half.unsqueeze(2) - half.unsqueeze(3)
        pull = gravity * own * away / (away.square().sum(1, keepdim=True) + softening**2) ** 1.5
        thrust = torch.zeros_like(half).index_add(2, torch.tensor(thrusters), control)
        velocity = state[:, dim:] + dt * (pull.sum(3) + thrust)
        return torch.cat([half + 0.5 * dt * velocity, velocity], 1)

    return step


def field_step(state, control, parameters):
    return dense_step(state, control * parameters)


GUIDANCE, FLOCK = Guidance(2, 4), Guidance(2, 18, reversed_flocking=True)
SHORT = Swarm(3, 40, radius=1.5, flocking=0.3, flight=2.0)
BODIES = NBody((1.0, 0.2, 0.1), (1, 2))
MANY = NBody(tuple(0.1 + 0.01 * i for i in range(20)), (3,), dim=3)
BOX = QuantumBox(9)
CASES = {
    "guidance": (GUIDANCE, herd_step(1.0, None)),
    "flock": (FLOCK, herd_step(-1.0, None)),
    "swarm in cells": (SHORT, herd_step(1.0, 1.5)),
    "n-body": (BODIES, bodies_step((1.0, 0.2, 0.1), (1, 2))),
    "20 bodies in space": (MANY, bodies_step(MANY.masses, (3,))),
    "quantum": (BOX, field_step),
}


@pytest.mark.vulkan
@pytest.mark.parametrize("name", CASES)
def test_step_and_derivatives_equal_those_of_torch_at_every_sample_s_own_parameters(name):
    system, step = CASES[name]
    state, control = system.sample(BATCH, torch.Generator().manual_seed(0)), uniform(2, BATCH, *system.control_shape)
    adjoint, parameters = uniform(3, *state.shape), varied(system, BATCH)
    leaves = [tensor.cpu().double().requires_grad_() for tensor in (state, control, parameters)]
    expected = step(*leaves)
    assert relative_error(launch_step(system, state, control, parameters), expected) < accuracy()
    derivatives = torch.autograd.grad(expected, leaves, adjoint.cpu().double())
    found = launch_pull_back(system, state, control, adjoint, parameters)
    for got, wanted in zip(found[:2], derivatives[:2], strict=True):
        assert relative_error(got, wanted) < accuracy()
    for column in range(parameters.shape[1]):
        assert derivatives[2][:, column].abs().min() > 0
        assert relative_error(found[2][:, column], derivatives[2][:, column]) < accuracy()


@pytest.mark.float64
def test_a_fluid_s_jets_have_the_strength_of_their_sample():
    settings = {"particles": 30, "jets": 2, "size": (1.0, 1.0), "spacing": 0.15, "jet_radius": 0.5, "steered": True}
    fluid = Held(Fluid(**settings), 2)
    state = fluid.system.sample(BATCH, torch.Generator().manual_seed(0))
    control, adjoint = uniform(1, BATCH, *fluid.control_shape), uniform(2, *state.shape)
    strengths = torch.tensor([[0.5], [1.0], [2.0]], **tensor_options())
    found, pulled = (
        launch_step(fluid, state, control, strengths),
        launch_pull_back(fluid, state, control, adjoint, strengths),
    )
    for b, strength in enumerate(strengths[:, 0].tolist()):
        own = Held(Fluid(**settings, jet_strength=strength), 2)
        one = slice(b, b + 1)
        given = state[one].clone(), control[one].clone()
        assert relative_error(found[one], own.step(*given)) < 1e-12
        for got, wanted in zip(pulled[:2], own.pull_back(*given, adjoint[one].clone()), strict=True):
            assert relative_error(got[one], wanted) < 1e-12
    ahead, behind = (launch_step(fluid, state, control, strengths + sign * 1e-3) for sign in (1, -1))
    slope = ((ahead - behind) / 2e-3 * adjoint).flatten(1).sum(1)
    assert relative_error(pulled[2][:, 0], slope) < 1e-6


@pytest.mark.float64
@pytest.mark.parametrize(
    ("name", "options", "names", "values"),
    [
        ("guidance", {"horizon": 5}, ("target_x", "flight"), ((0.3, 14.0), (-0.5, 16.0))),
        ("n-body", {"horizon": 4, "dim": 3}, ("target_radius", "softening"), ((1.2, 0.1), (1.7, 0.12))),
    ],
)
def test_goals_that_vary_are_differentiated_as_those_of_tasks_with_other_options(name, options, names, values):
    task = build_task(name, **options)
    assert set(names) <= set(task.parameters)
    rollout = Rollout(task.system, task.policy(1, **tensor_options()), task.horizon, 2, parameters=names)
    initial, given = task.initial_states(2, 0, "train", torch.float64), torch.tensor(values, **tensor_options())
    losses = rollout.forward(initial, task.objective, given)
    found = rollout.backward([FULL], task.objective).physical[FULL]
    for column in range(2):
        step = torch.zeros_like(given)
        step[:, column] = 1e-5
        ahead, behind = (rollout.forward(initial, task.objective, given + sign * step) for sign in (1, -1))
        assert relative_error(found[:, column], (ahead - behind) / 2e-5) < 1e-7
    option = {"target_x": "target_x", "target_radius": "radius"}[names[0]]
    for b, value in enumerate(values):
        other = build_task(name, **options, **{option: value[0]})
        alone = Rollout(task.system, task.policy(1, **tensor_options()), task.horizon, 1, parameters=names[1:])
        own = alone.forward(initial[b : b + 1], other.objective, given[b : b + 1, 1:].contiguous())
        assert relative_error(losses[b : b + 1], own) < 1e-12


@pytest.mark.parametrize(("name", "parameter"), [("guidance", "flight"), ("quantum", "slope")])
def test_plans_count_the_pull_backs_of_systems_that_sweep_in_one_launch_without_parameters_alone(name, parameter):
    task = build_task(name, horizon=5)
    policy = task.policy(1, **tensor_options())
    plain, rows = (Rollout(task.system, policy, 5, 2, parameters=names).plan for names in ((), (parameter,)))
    assert rows.predicted - plain.predicted >= 5 * PULL_BACK_LAUNCH_BYTES

"""Physical parameters of guidance, swarm, N-body, quantum and fluid, and goals that vary, beside independent torch."""

import inspect
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from test_fluid import fluid_step
from test_parameters import launch_pull_back, launch_step, varied
from test_quantum import dense_step

import engine
from engine import FULL, Guidance, NBody, QuantumBox, Rollout, SettingError, Swarm
from engine.parameters import SampleParameters
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


def bodies_step(thrusters, dt=0.02):
    """Leapfrog pair by pair; parameters [B, 2 + N]."""

    def step(state, control, parameters):
        dim = state.shape[1] // 2
        gravity, softening = (column.view(-1, 1, 1, 1) for column in parameters[:, :2].unbind(1))
        own = parameters[:, None, None, 2:]
        half = state[:, :dim] + 0.5 * dt * state[:, dim:]
        away = half.unsqueeze(2) - half.unsqueeze(3)
        pull = gravity * own * away / (away.square().sum(1, keepdim=True) + softening**2) ** 1.5
        thrust = torch.zeros_like(half).index_add(2, torch.tensor(thrusters), control)
        velocity = state[:, dim:] + dt * (pull.sum(3) + thrust)
        return torch.cat([half + 0.5 * dt * velocity, velocity], 1)

    return step


def field_step(state, control, parameters):
    return dense_step(state, control * parameters)


def flows(system):
    """The fluid's oracle sample by sample; parameters [B, 3]."""

    def step(state, control, parameters):
        names = ("dim", "size", "spacing", "sound_speed", "jet_radius", "dt")
        usual = {name: getattr(system, name) for name in names}
        own = [SimpleNamespace(**usual, **dict(zip(system.parameters, row, strict=True))) for row in parameters]
        ones = (slice(b, b + 1) for b in range(len(state)))
        return torch.cat([fluid_step(state[one], control[one], of) for one, of in zip(ones, own, strict=True)])

    return step


GUIDANCE, FLOCK = Guidance(2, 4), Guidance(2, 18, reversed_flocking=True)
SHORT = Swarm(3, 40, radius=1.5, flocking=0.3, flight=2.0)
BODIES = NBody((1.0, 0.2, 0.1), (1, 2))
MANY = NBody(tuple(0.1 + 0.01 * i for i in range(20)), (3,), dim=3)
BOX = QuantumBox(9)
FLUIDS = {
    "fluid": Fluid(60, 2, (1.2, 1.3), 0.1, viscosity=0.05, jet_radius=0.5, jet_strength=3.0),
    "fluid in space": Fluid(40, 2, (1.1, 1.2, 1.05), 0.1, viscosity=0.05, jet_radius=1.0, steered=True),
}
CASES = {
    "guidance": (GUIDANCE, herd_step(1.0, None)),
    "flock": (FLOCK, herd_step(-1.0, None)),
    "swarm in cells": (SHORT, herd_step(1.0, 1.5)),
    "n-body": (BODIES, bodies_step((1, 2))),
    "20 bodies in space": (MANY, bodies_step((3,))),
    "quantum": (BOX, field_step),
    **{name: (fluid, flows(fluid)) for name, fluid in FLUIDS.items()},
}


@pytest.mark.cuda
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
def test_a_fluid_under_held_controls_is_that_of_its_sample():
    settings = {"particles": 30, "jets": 2, "size": (1.0, 1.0), "spacing": 0.15, "jet_radius": 0.5, "steered": True}
    inner = Fluid(**settings, viscosity=0.0)
    fluid = Held(inner, 2)
    state = inner.sample(BATCH, torch.Generator().manual_seed(0))
    control, adjoint = uniform(1, BATCH, *fluid.control_shape), uniform(2, *state.shape)
    rows = torch.tensor([[0.5, 0.01, 0.5], [1.0, 0.02, 1.0], [2.0, 0.04, 2.0]], **tensor_options())
    found, pulled = launch_step(fluid, state, control, rows), launch_pull_back(fluid, state, control, adjoint, rows)
    unasked = torch.zeros_like(state), torch.zeros_like(control)
    fluid.prepare_pull_back(state, control, adjoint, *unasked, rows)()
    assert torch.equal(unasked[0], pulled[0])
    for b, values in enumerate(rows.tolist()):
        own = Held(Fluid(**settings, dt=inner.dt, **dict(zip(fluid.parameters, values, strict=True))), 2)
        one = slice(b, b + 1)
        given = state[one].clone(), control[one].clone()
        assert relative_error(found[one], own.step(*given)) < 1e-12
        for got, wanted in zip(pulled[:2], own.pull_back(*given, adjoint[one].clone()), strict=True):
            assert relative_error(got[one], wanted) < 1e-12
    for column in range(3):
        step = torch.zeros_like(rows)
        step[:, column] = 1e-3 * rows[:, column]
        ahead, behind = (launch_step(fluid, state, control, rows + sign * step) for sign in (1, -1))
        slope = ((ahead - behind) / (2 * step[:, column].view(-1, 1, 1)) * adjoint).flatten(1).sum(1)
        assert relative_error(pulled[2][:, column], slope) < 1e-6


@pytest.mark.float64
@pytest.mark.parametrize(
    ("name", "options", "names", "values"),
    [
        ("guidance", {"horizon": 5}, ("target_x", "flight"), ((0.3, 14.0), (-0.5, 16.0))),
        ("n-body", {"horizon": 4, "dim": 3}, ("target_radius", "mass_1"), ((1.2, 0.01), (1.7, 0.02))),
        ("quantum", {"horizon": 20, "points": 9}, ("target", "slope"), ((2.0, 0.9), (3.0, 1.1))),
    ],
)
def test_goals_that_vary_are_differentiated_as_those_of_tasks_with_other_options(name, options, names, values):
    task = build_task(name, **options)
    assert set(names) <= set(task.parameters)
    policy = task.policy(1, **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    policy.theta.data += 0.1 * uniform(5, *policy.theta.shape)
    rollout = Rollout(task.system, policy, task.horizon, 2, parameters=names)
    initial, given = task.initial_states(2, 0, "train", torch.float64), torch.tensor(values, **tensor_options())
    losses = rollout.forward(initial, task.objective, given)
    found = rollout.backward([FULL], task.objective).physical[FULL]
    for column in range(2):
        step = torch.zeros_like(given)
        step[:, column] = 1e-5
        ahead, behind = (rollout.forward(initial, task.objective, given + sign * step) for sign in (1, -1))
        assert relative_error(found[:, column], (ahead - behind) / 2e-5) < 1e-7
    option = "radius" if names[0] == "target_radius" else names[0]
    for b, value in enumerate(values):
        goal: Any = {option: int(value[0]) if option == "target" else value[0]}
        other = build_task(name, **options, **goal)
        alone = Rollout(task.system, policy, task.horizon, 1, parameters=names[1:])
        own = alone.forward(initial[b : b + 1], other.objective, given[b : b + 1, 1:].contiguous())
        assert relative_error(losses[b : b + 1], own) < 1e-12


@pytest.mark.float64
@pytest.mark.parametrize("dim", [2, 3])
def test_a_fluid_s_goal_is_differentiated_as_its_loss_changes(dim):
    objective = build_task("fluid", particles=400, jets=2, dim=dim).objective
    names = [f"target_{axis}" for axis in "xyz"[:dim]]
    assert objective.parameters == dict(zip(names, objective.goal, strict=True))
    state = 2.0 * uniform(0, BATCH, 2 * dim, 402, low=0.0)
    goals = torch.tensor(objective.goal, **tensor_options()).expand(BATCH, dim) + 0.1 * uniform(1, BATCH, dim)

    def losses(goals):
        return objective.given(dict(zip(names, goals.unbind(1), strict=True))).final(state)

    for b in range(BATCH):
        own = objective.aimed_at(tuple(goals[b].tolist()))
        assert relative_error(losses(goals)[b], own.final(state)[b]) < 1e-12
    leaf = goals.clone().requires_grad_()
    (found,) = torch.autograd.grad(losses(leaf).sum(), leaf)
    for axis in range(dim):
        step = 1e-6 * torch.eye(dim, **tensor_options())[axis]
        assert relative_error(found[:, axis], (losses(goals + step) - losses(goals - step)) / 2e-6) < 1e-6


@pytest.mark.parametrize(
    ("name", "parameter"), [("guidance", "flight"), ("quantum", "slope"), ("cart-pole", "friction")]
)
@pytest.mark.parametrize("physical", [True, False])
def test_what_varies_is_swept_in_one_launch_to_the_gradients_of_steps(name, parameter, physical, monkeypatch):
    task = build_task(name, horizon=5)
    policy = task.policy(1, **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    initial, rows = task.initial_states(2, 0, "train", policy.dtype), uniform(1, 2, 1, low=0.9, high=1.1)
    found = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(type(task.system), "prepare_sweep", lambda self, arrays: None)
        rollout = Rollout(task.system, policy, 5, 2, parameters=(parameter,))
        rollout.forward(initial, task.objective, rows)
        found.append(rollout.backward([FULL], task.objective, physical=physical))
        assert rollout.plan.predicted == Rollout(task.system, policy, 5, 2).plan.predicted
        assert bool(rollout._sweeper._pull_backs) == (not fused)
    for kind in ("parameters", "initial", "physical") if physical else ("parameters", "initial"):
        in_one, by_steps = (getattr(gradients, kind)[FULL] for gradients in found)
        assert in_one.any()
        assert relative_error(in_one, by_steps) < accuracy()
    assert all(bool(gradients.physical) == physical for gradients in found)


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("build", [partial(Fluid, 60, 2, (1.2, 1.3), 0.1), partial(NBody), partial(Swarm, 1, 4)])
def test_a_value_may_vary_where_a_system_can_be_built_with_it(build, value):
    system = build()
    for name in set(system.parameters) & set(inspect.signature(build.func).parameters):
        varying = SampleParameters(system, (name,), 1)
        asked = partial(varying.set, torch.full((1, 1), value, **tensor_options()))
        found = []
        for call in (partial(build, **{name: value}), asked):
            try:
                call()
                found.append(True)
            except SettingError:
                found.append(False)
        assert found[0] == found[1], name

"""Swarms: all pairs as in guidance, a flock that sees no further than a radius, and the task."""

import math
from functools import partial

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from oracles import Case, DirectionTests, JacobianTests, accuracy, gradient_of_rollout, losses_of_training, simulate
from test_guidance import guidance_step

import engine
from engine import Rollout
from engine.systems import Guidance, Swarm
from policies import Moments
from training import build_task
from training.tasks.herd import Herd

BATCH = 3


def swarm_step(state, control, radius=None, flocking=0.2, flight=15.0, reversed_flocking=False, dt=4 / 60, **options):
    """The oracle: guidance, whose flocking among evaders is exchanged for the one that W cuts off, and its flight."""
    drivers, herd = control.shape[2], state[:, :2, control.shape[2] :]
    away = herd.unsqueeze(3) - herd.unsqueeze(2)
    squared = away.square().sum(1, keepdim=True)
    distance = 0.1 + (squared + torch.eye(herd.shape[2], dtype=state.dtype)).sqrt()
    window = 1.0
    if radius is not None:
        s = (4 / 3 * (1 - squared / radius**2)).clamp(0, 1)
        window = s**2 * (3 - 2 * s)
    phi = (0.5 / distance - 1) / distance
    sign = -1 if reversed_flocking else 1
    exchanged = (sign * (flocking * window - 0.2) * -phi * away).sum(3)
    seen = herd.unsqueeze(3) - state[:, :2, :drivers].unsqueeze(2)
    exchanged = exchanged + ((flight - 15.0) * seen / (0.1 + seen.norm(dim=1, keepdim=True)) ** 2).sum(3)
    plain = guidance_step(state, control, dt=dt, reversed_flocking=reversed_flocking, **options)
    kick = torch.cat([torch.zeros_like(exchanged), dt * exchanged], dim=1)
    return torch.cat([plain[:, :, :drivers], plain[:, :, drivers:] + kick], dim=2)


OPTIONS = {
    "all pairs": (3, 40, {"flocking": 0.05, "mean_centre": True}),
    "one and one": (1, 1, {"radius": 0.5}),
    "few in cells": (2, 5, {"radius": 0.6, "reversed_flocking": True, "flight": 3.0}),
    "cells": (2, 40, {"radius": 0.9, "mean_centre": True, "flocking": 0.1}),
    "many in cells": (17, 300, {"radius": 0.5, "mean_centre": True, "dt": 0.1, "flight": 2.0}),
    "many in few cells": (4, 300, {"radius": 1.6, "reversed_flocking": True}),
    "cut off in all pairs": (2, 150, {"radius": 0.7, "cells": False, "mean_centre": True}),
}


def build(drivers, evaders, options):
    oracle = {key: value for key, value in options.items() if key != "cells"}
    return Case(Swarm(drivers, evaders, **options), partial(swarm_step, **oracle), BATCH, reach=2.0)


CASES = {name: build(*settings) for name, settings in OPTIONS.items()}


MANY = {"drivers": 2, "evaders": 120, "mean_centre": True}
"""Of most systems below, so that they share compiled kernels."""


class TestOracle(DirectionTests, JacobianTests):
    cases = CASES
    small, large = ("one and one", "few in cells", "cells"), ("many in cells", "cut off in all pairs")


@pytest.mark.cuda
@pytest.mark.vulkan
def test_without_a_radius_a_swarm_is_guidance_bit_for_bit():
    state, control, adjoint = (
        uniform(0, BATCH, 4, 122, low=-2, high=2),
        uniform(1, BATCH, 2, 2),
        uniform(2, BATCH, 4, 122),
    )
    swarm, guidance = Swarm(**MANY), Guidance(**MANY)
    assert torch.equal(swarm.step(state, control), guidance.step(state, control))
    for found, expected in zip(
        swarm.pull_back(state, control, adjoint), guidance.pull_back(state, control, adjoint), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("radius", [0.5, 12.0, 1e9])
def test_cells_and_all_pairs_agree_and_equal_guidance_where_the_radius_covers_everything(radius):
    state, control = uniform(0, BATCH, 4, 122, low=-2, high=2), uniform(1, BATCH, 2, 2)
    adjoint = uniform(2, BATCH, 4, 122)
    systems = [Swarm(**MANY, radius=radius), Swarm(**MANY, radius=radius, cells=False)]
    # Up to R/2 = 6 the window is 1, and the largest distance is 4 √2.
    systems += [Guidance(**MANY)] if radius > 8 * math.sqrt(2) else []
    first, *others = [(system.step(state, control), *system.pull_back(state, control, adjoint)) for system in systems]
    for other in others:
        for found, expected in zip(first, other, strict=True):
            assert relative_error(found, expected) < accuracy()


@pytest.mark.float64
def test_the_force_and_its_jacobian_are_continuous_at_the_cut_off():
    system, control = Swarm(1, 2, radius=1.0, flocking=1.0), torch.zeros(1, 2, 1, **tensor_options())

    def at(distance):
        """The force between two evaders at this distance, and its slope."""
        state = torch.zeros(1, 4, 3, **tensor_options())
        state[0, 0, 0], state[0, 0, 2] = 1e12, distance  # the driver is too far to matter
        unit = torch.zeros_like(state)
        unit[0, 2, 1] = 1.0
        force = system.step(state, control)[0, 2, 1].item() / system.dt
        return force, system.pull_back(state, control, unit)[0][0, 0, 2].item() / system.dt

    for edge in (0.5, 1.0):
        for below, above in zip(at(edge - 1e-7), at(edge + 1e-7), strict=True):
            assert below == pytest.approx(above, abs=1e-5)
    # The driver's pull of 15 / 1e12 stays.
    assert at(1.0 + 1e-9) == pytest.approx((0.0, 0.0), abs=1e-10)
    assert abs(at(0.75)[0]) > 0.05


@pytest.mark.cuda
@pytest.mark.vulkan
def test_flocking_forces_within_the_radius_add_up_to_nothing():
    plain, turned = (Swarm(**MANY, radius=0.5, reversed_flocking=reverse) for reverse in (False, True))
    state, control = uniform(0, BATCH, 4, 122, low=-2, high=2), torch.zeros(BATCH, 2, 2, **tensor_options())
    state[:, 2:] = 0.0
    flock = (plain.step(state, control) - turned.step(state, control))[:, 2:, 2:]
    largest = plain.step(state, control)[:, 2:].abs().max()
    assert flock.sum(2).abs().max() < 120 * torch.finfo(flock.dtype).eps * largest
    assert flock.abs().max() > 1e-3


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("radius", [1e-3, 0.5, 1e9])
def test_coincident_and_far_particles_have_defined_steps_and_gradients(radius):
    system = Swarm(**MANY, radius=radius)
    state = torch.full((1, 4, 122), 0.5, **tensor_options())
    state[0, 0, 40] = 1e9
    control, next_adjoint = torch.zeros(1, 2, 2, **tensor_options()), uniform(2, 1, 4, 122)
    ahead = system.step(state, control)
    assert ahead.isfinite().all()
    kept = [k for k in range(2, 122) if k != 40]
    if radius < 1e9:
        torch.testing.assert_close(ahead[0, 2:, kept], torch.full((2, 119), 0.5 - 4 / 60 * 4 * 0.5, **tensor_options()))
    for gradient in system.pull_back(state, control, next_adjoint):
        assert gradient.isfinite().all()


@pytest.mark.cuda
@pytest.mark.vulkan
def test_particles_whose_distance_overflows_when_squared_have_a_finite_adjoint():
    system = Swarm(**MANY, radius=1e9)
    state = uniform(1, 1, 4, 122)
    state[0, 0, 40] = 1.5 * torch.finfo(state.dtype).max ** 0.5
    control, next_adjoint = torch.zeros(1, 2, 2, **tensor_options()), uniform(2, 1, 4, 122)
    assert system.step(state, control).isfinite().all()
    for gradient in system.pull_back(state, control, next_adjoint):
        assert gradient.isfinite().all()


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_sample_that_is_not_finite_disturbs_no_other():
    system, state, control, next_adjoint = CASES["cells"].points()
    clean = system.step(state, control), *system.pull_back(state, control, next_adjoint)
    state[1, 0, 7] = math.nan
    found = system.step(state, control), *system.pull_back(state, control, next_adjoint)
    assert found[0][1].isnan().any()
    for one, other in zip(found, clean, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("radius", [0.0, 1.0])
def test_gradients_of_a_rollout_equal_autograd_through_the_oracle_in_every_segment_length(radius):
    task = build_task("swarm", drivers=2, evaders=30, horizon=6, radius=radius, flocking=0.8, flight=6.0)
    policy = Moments((4, 32), (2, 2), hidden=(8,), **tensor_options())
    policy.theta.data.copy_(0.1 * uniform(3, *policy.theta.shape))
    start = task.initial_states(BATCH, 0, "train", engine.current().dtype).to(engine.current().device)
    found = []
    for segment in (None, 2):
        rollout = Rollout(task.system, policy, 6, BATCH, segment=segment)
        rollout.forward(start)
        found.append(rollout.backward([engine.FULL], task.objective).parameters[engine.FULL])

    shared = {"flocking": 0.8 / 30, "flight": 3.0}
    step = partial(swarm_step, radius=radius or None, dt=0.1, reversed_flocking=True, mean_centre=True, **shared)
    slow = Moments((4, 32), (2, 2), hidden=(8,), dtype=torch.float64)
    slow.theta.data.copy_(policy.theta.data)
    expected = gradient_of_rollout(task, slow, step, start)
    for gradient in found:
        assert relative_error(gradient, expected) < 100 * accuracy()
    # What was made during the sweep serves outside it too.
    assert task.system.step(start, torch.zeros(BATCH, 2, 2, **tensor_options())).isfinite().all()


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drivers": 0}, "guidance with at least 1 driver, got 0."),
        ({"evaders": 0}, "guidance with at least 1 evader, got 0."),
        ({"dt": 0.0}, "a time step dt above 0 and below 0.5, got 0.0."),
        ({"dt": 0.5}, "a time step dt above 0 and below 0.5, got 0.5."),
        ({"dt": math.nan}, "a time step dt above 0 and below 0.5, got nan."),
        ({"radius": 0.0}, "a finite radius above 0, or None for no cut-off, got 0.0."),
        ({"radius": -1.0}, "a finite radius above 0, or None for no cut-off, got -1.0."),
        ({"radius": math.inf}, "a finite radius above 0, or None for no cut-off, got inf."),
        ({"flocking": math.nan}, "a finite flocking, got nan."),
        ({"flight": math.inf}, "a finite flight, got inf."),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(engine.SettingError) as refusal:
        Swarm(**settings)
    assert str(refusal.value) == f"Expected {message}"


@pytest.mark.float64
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaders": 0}, "a swarm with at least 1 evader, got 0"),
        ({"drivers": 0}, "a swarm with at least 1 driver, got 0"),
        ({"radius": -1.0}, "a radius of at least 0, got -1.0"),
        ({"half_width": 0.0}, "a half width above 0, got 0.0"),
        ({"dt": 0.6}, "a time step dt above 0 and below 0.5, got 0.6"),
        ({"regularisation": -1.0}, "a regularisation of at least 0, got -1.0"),
        ({"horizon": 0}, "a horizon of at least 1 step, got 0"),
    ],
)
def test_impossible_tasks_are_refused(options, message):
    with pytest.raises(engine.SettingError, match=f"^Expected {message}"):
        build_task("swarm", **options)


@pytest.mark.float64
def test_the_default_task_has_thousands_of_evaders():
    task = build_task("swarm")
    assert isinstance(task.system, Swarm)
    assert isinstance(task.objective, Herd)
    assert (task.system.drivers, task.system.evaders, task.horizon) == (8, 2000, 50)
    policy = task.policy(2, **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    states = task.initial_states(2, 0, "train", torch.float64)
    assert not policy(states.unsqueeze(1)).any()
    radius = states[:, :2, :8].norm(dim=1)
    assert 3.0 <= radius.min() < radius.max() <= 4.0
    herd = states[:, :2, 8:]
    assert 1.9 < (herd.amax(2) - herd.amin(2)).min() <= (herd.amax(2) - herd.amin(2)).max() <= 2.0


@pytest.mark.float64
def test_a_swarm_left_alone_stays_finite():
    for radius in (0.0, 0.5):
        task = build_task("swarm", evaders=60, radius=radius)
        states = simulate(task.system, task.initial_states(2, 0, "train", torch.float64), task.horizon)
        assert states[:, :, :2].abs().max() < 1e3


@pytest.mark.cuda
@pytest.mark.float64
def test_training_drives_a_swarm_nearer_to_its_target():
    losses = losses_of_training(build_task("swarm", evaders=60), 2, 12, 1e-2)
    assert losses[-1] < 0.5 * losses[0]

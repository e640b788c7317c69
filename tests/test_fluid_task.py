"""The task of gathering a fluid: its starts, its cost, and that it can be learned."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import tensor_options, uniform
from contract import check_refusal
from oracles import losses_of_training

import engine
import evenflow as ef
from engine.systems import Fluid, Held
from training import build_task, gradient_named


@pytest.mark.float64
@pytest.mark.parametrize("dim", [2, 3])
def test_starts_are_columns_at_rest_inside_the_tank_with_the_density_of_water(dim):
    task = build_task("fluid", particles=1000, dim=dim)
    assert isinstance(task.system, Held)
    fluid = task.system.system
    assert isinstance(fluid, Fluid)
    states = task.initial_states(6, 0, "train", torch.float64)
    places, jets = states[:, :dim, fluid.jets :], states[:, :dim, : fluid.jets]
    sizes = torch.tensor(fluid.size, dtype=torch.float64).view(1, -1, 1)
    assert places.min() > 0
    assert (places < sizes).all()
    assert (jets > 0).all()
    assert (jets < sizes).all()
    assert not states[:, dim:].any()
    assert torch.equal(jets[0], jets[5])
    assert (places[:, 0].mean(1).amax() - places[:, 0].mean(1).amin()) > 0.2
    widths = places[:, 0].amax(1) - places[:, 0].amin(1)
    assert widths.amax() - widths.amin() > 0.02
    densities = fluid.densities(states[:2].to(engine.current().device))
    assert 0.9 < densities.median() < 1.05
    assert densities.max() < 1.1


@pytest.mark.float64
def test_the_cost_is_its_formula():
    task = build_task("fluid", particles=100, jets=2, regularisation=0.5, horizon=7)
    state = torch.zeros(1, 4, 2 + 3, **tensor_options())
    state[0, :2, 2:] = torch.tensor([[1.5, 1.5, 1.5 - 0.8], [0.3, 0.3 + 0.2, 0.3]], **tensor_options())
    # Two particles in the ball of radius 0.3, one half a unit outside; distances count in half tanks, which are 1.
    assert task.objective.final(state).item() == pytest.approx(0.25 / 3, rel=1e-9)
    controls = uniform(0, 7, 1, 2, 2)
    running = task.objective.running(state.expand(7, 1, 4, 5), controls, torch.arange(7))
    torch.testing.assert_close(running.sum(0), 0.5 * controls.square().mean((0, 2, 3)))
    state[0, :2] = torch.tensor([[1.5], [0.3]], **tensor_options())
    (gradient,) = torch.autograd.grad(task.objective.final(state.requires_grad_()).sum(), state)
    assert gradient.isfinite().all()


@pytest.mark.float64
def test_steps_of_physics_are_shorter_by_the_safety():
    found: Any = [build_task("fluid", particles=100, safety=safety).system for safety in (1.0, 2.5)]
    usual, safe = found
    assert safe.steps == pytest.approx(2.5 * usual.steps, abs=2.5)
    assert safe.step_time == pytest.approx(usual.step_time)
    assert safe.system.dt <= usual.system.dt / 2 < usual.system.dt


@pytest.mark.float64
def test_flows_beyond_the_time_step_are_doubted_and_no_others():
    found: Any = [build_task("fluid", particles=100, jets=2, safety=safety).system for safety in (1.0, 2.0)]
    usual, safe = found
    fluid = usual.system
    states = torch.zeros(3, 2, 4, 2 + 100, **tensor_options())
    states[:, :, 2:, :2] = 1e6  # jets are no fluid
    states[2, 1, 2:, 50] = torch.nan  # that is a divergence, and told as one
    highest = 0.4 * 2.6 * fluid.spacing / fluid.dt - 5.0
    assert highest >= 5.0
    states[1, 1, 2:, 40] = 0.999 * highest * torch.tensor([0.6, -0.8], **tensor_options())
    assert usual.doubts(states) is None
    states[1, 1, 2:, 40] *= 1.01
    sentence = usual.doubts(states)
    assert f"slower than {highest:.3g}" in sentence
    assert "sound at 5," in sentence
    assert f"particles at {1.01 * 0.999 * highest:.3g}" in sentence
    assert safe.doubts(states) is None
    assert build_task("cart-pole").system.doubts(states) is None


@pytest.mark.float64
@pytest.mark.parametrize("gradient", ["R", "short(R, 2)"])
def test_training_tells_once_of_a_fluid_beyond_its_time_step(gradient):
    task = build_task("fluid", particles=60, horizon=4, duration=2.0, sound_speed=0.2, gravity=1.0)
    settings = ef.TrainingSettings(batch_size=2, train_samples=4, test_samples=1)
    trainer = ef.Trainer(task, [ef.Member(gradient_named(gradient).estimator)], settings)
    with pytest.warns(ef.EvenflowWarning, match="raise sound_speed") as told:
        list(trainer.fit(2))
    assert len([warning for warning in told if "raise sound_speed" in str(warning.message)]) == 1


@pytest.mark.cuda
@pytest.mark.float64
def test_training_gathers_the_fluid():
    losses = losses_of_training(build_task("fluid", particles=120, horizon=20), 4, 20, 1e-2)
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.float64
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 0}, "a fluid task with at least 1 particle, got 0."),
        ({"jets": 0}, "a fluid task with at least 1 jet, got 0."),
        ({"horizon": 0}, "a fluid task with at least 1 step of horizon, got 0."),
        ({"dim": 4}, "a fluid in 2 or 3 dimensions, got 4."),
        ({"duration": 0.0}, "a finite duration above 0, got 0.0."),
        ({"sound_speed": -1.0}, "a finite sound speed above 0, got -1.0."),
        ({"regularisation": -1.0}, "a regularisation of at least 0, got -1.0."),
        ({"safety": 0.5}, "a safety of at least 1, got 0.5."),
        ({"viscosity": -1.0}, "a finite viscosity of at least 0, got -1.0."),
        ({"particles": 2}, "a box of at least 2 kernel radii,"),
    ],
)
def test_impossible_tasks_are_refused(options, message):
    check_refusal(partial(build_task, "fluid"), options, message)

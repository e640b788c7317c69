"""Options that make no sense as numbers are refused in one sentence, wherever they are given."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import tensor_options

import engine
from engine import ClipNorm, Decay, EvenflowError, PathRule, Truncate
from engine.checks import finite, flag, not_negative, one_of, positive, real, whole
from engine.particles.neighbours import Neighbours
from engine.systems import CartPendulum, CartPole, Fluid, Guidance, Held, Integrator, LinearSystem, NBody, QuantumBox
from engine.systems.swarm import Swarm
from policies import MLP, Convolutional, DeepSets, Linear, Moments, PolicyError, Polynomial
from training import Clipping, Experiment, Member, Trainer, TrainingSettings, build_task
from training.objectives import Quadratic
from training.viewing import ViewSettings

pytestmark = pytest.mark.float64

# To the type checker they are neither ints nor floats.
INT: Any = np.int64
FLOAT: Any = np.float64
SINGLE: Any = np.float32
BOOL: Any = np.bool_

NO_COUNTS = (0, -1, 1.5, 2.0, True, math.nan, math.inf, "2", None, [2], np.float64(2.0), np.bool_(True))
NO_SIZES = (0.0, -1.0, math.nan, math.inf, -math.inf, True, "1", [1.0], 1j, 10**400)
NO_NUMBERS = (math.nan, math.inf, -math.inf, True, "1", [1.0], 1j)


def small_fluid(**options):
    return Fluid(**{"particles": 5, "jets": 1, "size": (1.2, 1.3), "spacing": 0.1, **options})


def rollout(**options):
    policy = MLP((4,), (1,), hidden=(2,), **tensor_options())
    return engine.Rollout(CartPole(), policy, **{"horizon": 2, "batch": 2, **options})


def trainer():
    settings = TrainingSettings(batch_size=2, train_samples=2, test_samples=2)
    return Trainer(build_task("integrator"), [Member()], settings)


COUNTS = {
    "poles": lambda v: CartPole(v),
    "links": lambda v: CartPendulum(v),
    "points": lambda v: QuantumBox(v),
    "eigenstate": lambda v: QuantumBox().eigenstate(v),
    "held steps": lambda v: Held(CartPole(), v),
    "drivers": lambda v: Guidance(v),
    "evaders": lambda v: Guidance(2, v),
    "swarm": lambda v: Swarm(2, v),
    "particles": lambda v: small_fluid(particles=v),
    "jets": lambda v: small_fluid(jets=v),
    "dimensions": lambda v: Integrator(v),
    "n-body's dim": lambda v: NBody(dim=v),
    "thrusters": lambda v: NBody(thrusters=(v, 7)),
    "neighbours": lambda v: Neighbours(2, v, 0.1),
    "neighbours' dim": lambda v: Neighbours(v, 5, 0.1),
    "window": lambda v: Truncate(window=v),
    "horizon": lambda v: rollout(horizon=v),
    "batch": lambda v: rollout(batch=v),
    "epochs": lambda v: next(trainer().fit(v)),
    "batch size": lambda v: TrainingSettings(batch_size=v),
    "training states": lambda v: TrainingSettings(batch_size=1, train_samples=v),
    "test states": lambda v: TrainingSettings(test_samples=v),
    "an experiment's epochs": lambda v: Experiment("lqr", epochs=v),
    "checkpoint every": lambda v: Experiment("lqr", checkpoint_every=v),
    "members": lambda v: MLP((4,), (1,), members=v),
    "hidden": lambda v: MLP((4,), (1,), hidden=(10, v)),
    "state shape": lambda v: MLP((v,), (1,)),
    "control shape": lambda v: Linear((2,), (v,)),
    "a polynomial's shape": lambda v: Polynomial((v,)),
    "filters": lambda v: Convolutional((2, 32), (1,), filters=(v,)),
    "width": lambda v: Convolutional((2, 32), (1,), width=v),
    "stride": lambda v: Convolutional((2, 32), (1,), stride=v),
    "moments": lambda v: Moments((4, 9), (2, 2), hidden=(v,)),
    "features": lambda v: DeepSets((4, 9), (2, 2), features=(v,)),
    "pixels": lambda v: ViewSettings(size=v),
    "initial states": lambda v: build_task("lqr").initial_states(v, 0, "train", torch.float64),
    "shape of a kernel system": lambda v: engine.KernelSystem(None, (v,), (1,)),
    **{
        f"{task}'s {name}": lambda v, task=task, name=name: build_task(task, **{name: v})
        for task, names in {
            "cart-pole": ("poles", "horizon"),
            "cart-pendulum": ("links", "horizon"),
            "guidance": ("drivers", "evaders", "horizon"),
            "quantum": ("target", "points", "horizon"),
            "fluid": ("particles", "jets", "dim", "horizon"),
            "n-body": ("satellites", "dim", "horizon"),
            "swarm": ("drivers", "evaders", "horizon"),
            "lqr": ("horizon",),
            "integrator": ("horizon",),
        }.items()
        for name in names
    },
}
SIZES = {
    "cart-pole's dt": lambda v: CartPole(1, v),
    "cart-pendulum's dt": lambda v: CartPendulum(1, v),
    "quantum's dt": lambda v: QuantumBox(4, v),
    "guidance's dt": lambda v: Guidance(dt=v),
    "swarm's dt": lambda v: Swarm(dt=v),
    "swarm's radius": lambda v: Swarm(radius=v),
    "n-body's dt": lambda v: NBody(dt=v),
    "softening": lambda v: NBody(softening=v),
    "spacing": lambda v: small_fluid(spacing=v),
    "fluid's size": lambda v: small_fluid(size=(1.0, v)),
    "sound speed": lambda v: small_fluid(sound_speed=v),
    "jet radius": lambda v: small_fluid(jet_radius=v),
    "jet strength": lambda v: small_fluid(jet_strength=v),
    "fluid's dt": lambda v: small_fluid(dt=v),
    "radius": lambda v: Neighbours(2, 5, v),
    "period": lambda v: Neighbours(2, 5, 0.1, (v, None)),
    "learning rate": lambda v: Member(learning_rate=v),
    "fluid's duration": lambda v: build_task("fluid", duration=v),
    "n-body's radius": lambda v: build_task("n-body", radius=v),
    "swarm's half width": lambda v: build_task("swarm", half_width=v),
}
NUMBERS = {
    "physics weight": lambda v: PathRule(v),
    "policy weight": lambda v: PathRule(1.0, v),
    "decay": lambda v: Decay(factor=v),
    "masses": lambda v: NBody(masses=(1.0, v)),
    "gravity": lambda v: NBody(gravity=v),
    "viscosity": lambda v: small_fluid(viscosity=v),
    "flocking": lambda v: Swarm(flocking=v),
    "flight": lambda v: Swarm(flight=v),
    "weights": lambda v: Quadratic((1.0, v), 1.0),
    "control weight": lambda v: Quadratic((1.0,), v),
    "momentum": lambda v: TrainingSettings(momentum=v),
    **{
        f"{task}'s {name}": lambda v, task=task, name=name: build_task(task, **{name: v})
        for task, names in {
            "guidance": ("regularisation", "target_x", "target_y"),
            "swarm": ("regularisation", "radius", "target_x", "target_y", "flocking", "flight"),
            "fluid": ("viscosity", "gravity", "regularisation"),
            "n-body": ("satellite_mass", "regularisation"),
            "integrator": ("target",),
        }.items()
        for name in names
    },
}
SWITCHES = {
    "mean centre": lambda v: Guidance(mean_centre=v),
    "reversed flocking": lambda v: Guidance(reversed_flocking=v),
    "cells": lambda v: Swarm(cells=v),
    "steered": lambda v: small_fluid(steered=v),
    "forward only": lambda v: rollout(forward_only=v),
    "shuffle": lambda v: TrainingSettings(shuffle=v),
}


def refused(make, value):
    with pytest.raises((EvenflowError, PolicyError)) as refusal:
        make(value)
    text = str(refusal.value)
    assert text.startswith("Expected ")
    assert ", got " in text
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("make", "values"),
    [
        pytest.param(make, values, id=f"{kind}: {name}")
        for kind, table, values in (
            ("count", COUNTS, NO_COUNTS),
            ("size", SIZES, NO_SIZES),
            ("number", NUMBERS, NO_NUMBERS),
            ("switch", SWITCHES, (0, 1, "no", "False", None, 1.0)),
        )
        for name, make in table.items()
    ],
)
def test_counts_are_whole_sizes_above_zero_weights_finite_and_switches_true_or_false(make, values):
    for value in values:
        refused(make, value)


@pytest.mark.parametrize("value", [-1, 1.5, True, math.nan, "0", None])
def test_seeds_are_whole_numbers_of_at_least_zero(value):
    refused(lambda v: Member(seed=v), value)
    refused(lambda v: Experiment("lqr", seeds=(0, v)), value)
    refused(lambda v: build_task("lqr").initial_states(2, v, "train", torch.float64), value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, True, "1", None])
def test_limits_of_clipping_are_above_zero(value):
    refused(lambda v: ClipNorm(limit=v), value)
    refused(lambda v: Clipping("norm", v), value)


@pytest.mark.parametrize("value", [0, 2.5, True, "2"])
def test_segments_are_whole_numbers(value):
    refused(lambda v: rollout(segment=v), value)


def test_numbers_of_numpy_and_whole_floats_where_floats_are_meant_are_fine():
    pole = CartPole(INT(2), SINGLE(0.5))
    assert (type(pole.poles), pole.dt, type(pole.dt)) == (int, 0.5, float)
    assert Truncate(window=INT(3)) == Truncate(window=3)
    assert PathRule(1, FLOAT(0)) == engine.PHYSICS_ONLY
    assert Member(seed=INT(3), learning_rate=1).seed == 3
    assert TrainingSettings(batch_size=INT(8)).batch_size == 8
    assert NBody((1, SINGLE(0.5), 0), (INT(1),)).masses == (1.0, 0.5, 0.0)
    assert small_fluid(particles=INT(5), steered=BOOL(True)).control_shape == (4, 1)
    assert MLP((INT(4),), (1,), hidden=[INT(3)]).widths == (4, 3, 1)
    assert rollout(horizon=INT(3)).horizon == 3
    assert Neighbours(2, 5, 0.1, SINGLE(2.0)).grid.periods == (2.0, 2.0)
    assert LinearSystem([[1]], [[1]]).A == ((1.0,),)


def test_an_experiment_with_numbers_of_numpy_can_be_written():
    given = Experiment(
        "cart-pole",
        {"poles": INT(2), "dt": FLOAT(0.01)},
        gradients=("R",),
        seeds=(INT(1),),
        learning_rates=(FLOAT(1e-3),),
        epochs=INT(3),
    )
    read = Experiment.from_config(yaml.safe_load(yaml.safe_dump(given.to_config())))
    assert (read.options["poles"], read.seeds, read.learning_rates, read.epochs) == (2, (1,), (1e-3,), 3)


def test_the_helpers_return_plain_numbers_or_one_sentence():
    assert (whole("a", INT(3)), whole("a", 0, 0), whole("a", 3, most=3)) == (3, 0, 3)
    assert (real("a", SINGLE(0.5)), finite("a", 2), positive("a", 1e-300), not_negative("a", 0)) == (
        0.5,
        2,
        1e-300,
        0,
    )
    assert (flag("a", BOOL(False)), one_of("a", "x", ("x", "y")), one_of("a", INT(2), (2, 3))) == (
        False,
        "x",
        2,
    )
    for call, sentence in (
        (lambda: whole("at least 1 pole", FLOAT(1.5)), "Expected at least 1 pole, got 1.5."),
        (lambda: whole("at least 1 pole", "1"), "Expected at least 1 pole, got '1'."),
        (lambda: positive("a step above 0", math.inf), "Expected a step above 0, as a finite number, got inf."),
        (lambda: positive("a step above 0", math.nan), "Expected a step above 0, got nan."),
        (lambda: positive("a step above 0", 10**400), f"Expected a step above 0, got 1{'0' * 76}...."),
        (lambda: flag("a switch", 1), "Expected a switch as True or False, got 1."),
        (lambda: one_of("2 or 3", 4, (2, 3)), "Expected 2 or 3, got 4."),
        (lambda: one_of("2 or 3", True, (1, 3)), "Expected 2 or 3, got True."),
    ):
        with pytest.raises(engine.SettingError) as refusal:
            call()
        assert str(refusal.value) == sentence

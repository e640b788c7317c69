"""Trainings with randomised parameters, noise, observations and ends: what is drawn, resumption, the command line."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import relative_error, tensor_options
from test_parts import SIGHT, Approach, beyond

import evenflow
from benchmarks.studies.costs import measure_costs
from benchmarks.studies.diagnostics import diagnose
from benchmarks.studies.packs import run_study
from benchmarks.studies.sizing import seconds_of_a_seed
from benchmarks.studies.study import Study
from benchmarks.studies.transfer import transferred
from engine import FULL, CartPole, Held, Noise, Observation, Rollout, SettingError, Trajectory
from engine.noise import CONTROL, STATE, NoiseSource
from engine.parameters import SampleParameters
from training import (
    TASKS,
    Experiment,
    Member,
    RunDirectory,
    Task,
    Trainer,
    TrainingSettings,
    build_task,
    gradient_named,
    load_task,
    resume,
    train,
)
from training.scores import Copies, Score
from training.starts import policy_for, uniform_states
from training.viewing.simulation import Simulation
from training.viewing.watching import untrained

pytestmark = pytest.mark.float64
SMALL = TrainingSettings(batch_size=2, train_samples=4, test_samples=3)
RANGES = (("pole_mass", 0.08, 0.12), ("half_length", 0.4, 0.6))
SYSTEM = CartPole(2)


def full_task(**changes):
    """A task with every part."""
    task = Task(
        "full", SYSTEM, Approach(), uniform_states((-0.1, 1, 3, 3, 0, 0), (0.1, 2, 3.2, 3.2, 1, 1)), 9,
        policy_for(SYSTEM, observation=SIGHT, hidden=(5,)), observation=SIGHT, noise=Noise(0.01, 0.1), end=beyond,
        randomise=RANGES,
    )  # fmt: skip
    return replace(task, **changes)


def members(*seeds):
    return [Member(seed=seed) for seed in seeds]


def test_training_states_draw_their_parameters_and_test_states_have_the_usual_ones():
    task = full_task()
    starts: Any = task.starts
    states, drawn = starts(400, 3, "train", torch.float64)
    assert torch.equal(states, task.initial_states(400, 3, "train", torch.float64))
    low, high = (torch.tensor([entry[side] for entry in RANGES], dtype=torch.float64) for side in (1, 2))
    assert ((low <= drawn) & (drawn <= high)).all()
    assert ((drawn.mean(0) - (low + high) / 2).abs() < 5 * (high - low) / (12 * 400) ** 0.5).all()
    assert torch.equal(drawn, starts(400, 3, "train", torch.float64)[1])
    assert not torch.equal(drawn, starts(400, 4, "train", torch.float64)[1])
    assert starts(2, 3, "test", torch.float64)[1].tolist() == [[0.1, 0.5]] * 2
    assert full_task(randomise=()).starts(2, 3, "train", torch.float64)[1] is None


def test_an_update_uses_the_draws_of_its_states_and_the_noise_of_its_number():
    trainer = Trainer(full_task(), members(5, 7), SMALL)
    trainer.updates = 1
    batches = list(trainer.batches())
    losses, gradient = trainer.gradient(*batches[1])
    rollout = Rollout(SYSTEM, trainer.policy, 9, 4, parameters=("pole_mass", "half_length"), observation=SIGHT,
                      noise=Noise(0.01, 0.1), end=beyond)  # fmt: skip
    rollout.seed_noise([5, 7], draw=1)
    rollout(
        torch.cat([trainer._train[0, 2:], trainer._train[1, 2:]]),
        parameters=trainer._train_parameters[:, 2:].flatten(0, 1),
    )
    found = rollout.backward([FULL], Approach())
    assert torch.equal(losses, found.losses.view(2, 2).mean(1))
    assert torch.equal(gradient, found.parameters[FULL])
    trainer.updates = 0
    assert not torch.equal(trainer.gradient(*batches[1])[0], losses)


def test_a_member_trains_as_it_would_alone():
    together, alone = Trainer(full_task(), members(5, 7), SMALL), Trainer(full_task(), members(7), SMALL)
    for trainer in (together, alone):
        list(trainer.fit(2))
    assert relative_error(together.policy.theta[1], alone.policy.theta[0]) < 1e-9
    assert len(alone.divergences) == 0


def test_shuffled_states_keep_their_parameters():
    trainer = Trainer(full_task(), members(5), replace(SMALL, shuffle=True))
    pairs = {
        tuple(row.tolist()): drawn for row, drawn in zip(trainer._train[0], trainer._train_parameters[0], strict=True)
    }
    for states, drawn in trainer.batches():
        assert drawn is not None
        for row, values in zip(states, drawn, strict=True):
            assert torch.equal(pairs[tuple(row.tolist())], values)


def experiment(epochs):
    return Experiment(
        "cart-pole", {"horizon": 5}, gradients=("R", "C"), seeds=(0, 1), epochs=epochs, settings=SMALL,
        randomise=("pole_mass=0.08:0.12", "friction=0:0.5"),
    )  # fmt: skip


def test_a_run_says_what_it_randomised_and_resumes_to_the_same_numbers(tmp_path):
    whole = train(experiment(3), tmp_path / "whole")
    train(experiment(1), tmp_path / "cut")
    assert RunDirectory.open(tmp_path / "cut").config["randomise"] == ["pole_mass=0.08:0.12", "friction=0:0.5"]
    continued = resume(tmp_path / "cut", epochs=3)
    assert torch.equal(continued.policy.theta, whole.policy.theta)
    plain = train(replace(experiment(3), randomise=()), tmp_path / "plain")
    assert "randomise" not in RunDirectory.open(tmp_path / "plain").config
    assert not torch.equal(plain.policy.theta, whole.policy.theta)


def test_controllers_are_tested_at_fixed_values_of_a_parameter(tmp_path):
    trainer = train(experiment(1), tmp_path / "run")
    found = transferred(tmp_path / "run", (0.1, 0.3), "pole_mass")
    assert found[0.1] == trainer.test().tolist()
    system = CartPole(1, pole_mass=0.3)
    task = build_task("cart-pole", horizon=5)
    other = Trajectory(system, trainer.policy, 5, 12, forward_only=True)
    starts = [task.initial_states(3, member.seed, "test", torch.float64) for member in trainer.members]
    losses = other.forward(torch.cat(starts), task.objective)
    assert losses is not None
    assert relative_error(torch.tensor(found[0.3], dtype=torch.float64), losses.view(4, 3).mean(1)) < 1e-9
    with pytest.raises(SettingError, match=r"^Expected pole_mass from a low above 0 to a high bound, got -1:-1\.$"):
        transferred(tmp_path / "run", (-1.0,), "pole_mass")


def test_a_trainer_tests_its_members_at_values_of_a_parameter():
    task = full_task()
    trainer = Trainer(task, members(0, 1), SMALL)
    trainer.run_epoch()
    starts = torch.cat([task.initial_states(3, seed, "test", torch.float64) for seed in (0, 1)])
    parts = {"observation": SIGHT, "end": beyond, "noise": task.noise, "parameters": ("half_length", "pole_mass")}
    alone = Trajectory(SYSTEM, trainer.policy, task.horizon, 6, forward_only=True, **parts)
    alone.seed_noise([0, 1], 2**32 - 1)
    losses: Any = alone.forward(starts, task.objective, torch.tensor([[0.6, 0.2]] * 6, dtype=torch.float64))
    found = trainer.test(half_length=0.6, pole_mass=0.2)
    assert relative_error(found, losses.view(2, 3).mean(1)) < 1e-12
    assert relative_error(found, trainer.test()) > 1e-5
    with pytest.raises(SettingError, match=r"^Expected a parameter among .*, got 'pole_mas' \(perhaps pole_mass\)\.$"):
        trainer.test(pole_mas=0.1)


def test_what_is_randomised_besides_has_its_usual_value_in_tests_at_values_of_a_parameter():
    """The observation reads half_length, which is given in none of these."""
    trainer = Trainer(full_task(), members(0, 1), SMALL)
    usual = trainer.task.parameters
    for name in ("pole_mass", "friction"):
        assert relative_error(trainer.test(**{name: usual[name]}), trainer.test()) < 1e-12
    assert torch.equal(trainer.test(pole_mass=0.2), trainer.test(pole_mass=0.2, half_length=usual["half_length"]))


def test_a_run_is_watched_and_transferred_with_what_it_randomised(tmp_path, monkeypatch):
    """An observation that sees a parameter only where it varies sees in every door what it saw in training."""
    kind = TASKS["cart-pole"]
    build = kind.build

    def seeing(options):
        task, seen = build(options), Observation(sees_mass, (5,))
        return replace(task, observation=seen, policy=policy_for(task.system, observation=seen, hidden=(5,)))

    monkeypatch.setattr(kind, "build", seeing)
    trainer = train(replace(experiment(1), randomise=("pole_mass=0.08:0.12",)), tmp_path / "run")
    expected = trainer.test().tolist()
    assert transferred(tmp_path / "run", (1,))[1] == expected
    assert transferred(tmp_path / "run", (0.1,), "pole_mass")[0.1] == expected
    assert transferred(tmp_path / "run", (CartPole(1).parameters["friction"],), "friction").popitem()[1] == expected
    assert load_task(tmp_path / "run").randomise == (("pole_mass", 0.08, 0.12),)


def sees_mass(states, steps, parameters):
    mass = parameters["pole_mass"] if "pole_mass" in parameters else torch.zeros_like(states[..., 0])
    return torch.cat([states, 10.0 * mass.unsqueeze(-1)], -1)


def test_a_task_that_randomises_by_itself_goes_through_every_door(tmp_path, monkeypatch):
    kind, variants = TASKS["cart-pole"], [gradient_named(letter) for letter in "RC"]
    build = kind.build
    plain = Simulation(untrained(kind(horizon=5)), variants)
    monkeypatch.setattr(kind, "build", lambda options: replace(build(options), randomise=(("pole_mass", 0.2, 0.3),)))
    shown = Simulation(untrained(kind(horizon=5)), variants)
    assert shown.task.randomise
    expected, found = (simulation.run(simulation.initial(1), 0) for simulation in (plain, shown))
    assert relative_error(found.states, expected.states) < 1e-12
    assert relative_error(found.adjoints["C"], expected.adjoints["C"]) < 1e-12
    trainer = train(replace(experiment(1), randomise=()), tmp_path / "run")
    assert transferred(tmp_path / "run", (1,))[1] == trainer.test().tolist()
    assert transferred(tmp_path / "run", (0.1,), "pole_mass")[0.1] == trainer.test().tolist()
    study = Study("cart-pole", options={"horizon": 5}, difficulties=(1,), seed_count=1, epochs=1, settings=SMALL)
    run_study(study, tmp_path / "study")
    assert [entry.epoch for entry in diagnose(study, tmp_path / "study", samples=2)] == [0, 1]
    assert measure_costs(study, rounds=1)["1"]["R"]["ms"] > 0
    assert seconds_of_a_seed(study, 1) > 0


def test_noise_of_two_kinds_is_told_apart():
    draws = []
    for kind in (STATE, CONTROL):
        source = NoiseSource(kind, 1.0, 1, 1, 1, (4,))
        source.seed(0, 0)
        source.fill(0)
        draws.append(source.values)
    assert not torch.equal(*draws)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (("pole_mas=0.1:0.2",), r"a parameter among gravity, cart_mass, .*, got 'pole_mas' \(perhaps pole_mass\)"),
        (("pole_mass=0.2:0.1",), "pole_mass from a low above 0 to a high bound, got 0.2:0.1"),
        (("pole_mass=0:0.1",), "pole_mass from a low above 0 to a high bound, got 0:0.1"),
        (("gravity=1:inf",), "finite bounds of gravity, got inf"),
        (
            ("gravity=1:2", ("gravity", 3)),
            r"a range as \(name, low, high\) or pole_mass=0.08:0.12, got \('gravity', 3\)",
        ),
        (3, r"a range as \(name, low, high\) or pole_mass=0.08:0.12, got 3"),
        (("gravity",), "a range such as pole_mass=0.08:0.12, got 'gravity'"),
        (("gravity=1:2", "gravity=3"), "each parameter once, got gravity, gravity"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(ranges, message):
    with pytest.raises(SettingError, match=rf"^Expected {message}\.$"):
        full_task(randomise=ranges)


def test_ranges_may_be_text_and_an_objective_says_which_of_its_parameters_are_above_0():
    assert full_task(randomise="pole_mass=0.08:0.12").randomise == (("pole_mass", 0.08, 0.12),)
    assert full_task(randomise=("gravity=9", *RANGES)).randomise == (("gravity", 9.0, 9.0), *RANGES)
    with pytest.raises(SettingError, match=r"^Expected target_radius from a low above 0 to a high bound, got -1:1\.$"):
        replace(build_task("n-body"), randomise=(("target_radius", -1.0, 1.0),))


@pytest.mark.parametrize(("task", "name"), [("n-body", "gravity"), ("n-body", "mass_1"), ("fluid", "gravity")])
def test_what_a_system_is_not_built_with_is_no_value_of_a_sample(task, name):
    one = build_task(task)
    with pytest.raises(SettingError, match=rf"^Expected {name} from a low of at least 0 to a high bound, got -1:1\.$"):
        replace(one, randomise=((name, -1.0, 1.0),))
    parameters = SampleParameters(Held(one.system, 2), ("viscosity", name), 3)
    values = torch.ones(3, 2, **tensor_options())
    parameters.set(values * torch.tensor([1.0, 0.0], **tensor_options()))
    values[2, 1] = -1.0
    with pytest.raises(SettingError, match=rf"^Expected {name} of at least 0, got -1 at sample 2\.$"):
        parameters.set(values)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0,), 3.0, ("a", 1.0)])
def test_bounds_of_controls_that_make_no_sense_are_refused(bounds):
    with pytest.raises(
        SettingError, match=r"^Expected bounds of the controls \(low, high\), low below high, got .*\.$"
    ):
        full_task(control_bounds=bounds)


def test_a_task_of_which_nothing_varies_says_so(capsys):
    status = evenflow.main(
        ["train", "lqr", "--randomise", "mass=1:2", "--epochs", "1", "--backend", "cpu", "--precision", "float64"]
    )
    assert status == 2
    told = capsys.readouterr().err
    assert told == "evenflow: Expected a task with parameters that can vary, got one without any and 'mass'.\n"


def test_score_estimators_see_the_same_task_and_tend_to_its_gradient():
    task = full_task(noise=None, horizon=4, end=None)
    initial, drawn = task.starts(2, 0, "train", torch.float64)
    policy = task.policy(1, torch.float64, torch.device("cpu"))
    policy.initialise(0, torch.Generator().manual_seed(0))
    rollout = Rollout(SYSTEM, policy, task.horizon, 2, **task.parts)
    rollout(initial, parameters=drawn)
    expected = rollout.backward([FULL], task.objective).parameters[FULL]
    copies = Copies(task, policy, Score(1e-3, 4000), 2)
    noise = torch.randn(2, 2000, task.horizon, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert relative_error(copies.gradients(initial, noise, parameters=drawn), expected) < 0.1

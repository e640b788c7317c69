"""What policies compute with besides their parameters goes on with a run, and serves copies and windows alike."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from conftest import tensor_options
from torch import nn

from benchmarks.doctor.examination import examine
from benchmarks.doctor.patient import Patient
from benchmarks.studies.transfer import transferred
from engine import CartPole, SettingError
from policies import MLP, ModulePolicy, Policy, PolicyError
from training import (
    Experiment,
    Member,
    Task,
    Trainer,
    TrainingSettings,
    build_task,
    gradient_named,
    load_controller,
    resume,
    train,
)
from training.starts import policy_for, uniform_states
from training.tasks import TASKS, register_task, task_options
from training.viewing.simulation import Simulation
from training.viewing.watching import untrained, watched

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=16, test_samples=8)


class Features(nn.Module):
    """Random features, other ones in every module that is built."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(4, 16, dtype=torch.float64))
        self.last = nn.Linear(16, 1, dtype=torch.float64)

    def forward(self, state):
        return self.last(torch.sin(state @ self.frequencies))


def task_of(make):
    cart_pole = build_task("cart-pole", horizon=10)
    return Task("features", cart_pole.system, cart_pole.objective, cart_pole.sample, 10, make)


def afresh(**given):
    return ModulePolicy(Features(), (4,), (1,), **given)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(TASKS, "_things", dict(TASKS._things))

    def register(make):
        @dataclass(frozen=True)
        class Options:
            """A cart-pole under another policy."""

            horizon: int = 10
            """Steps."""

            def build(self):
                return task_of(make)

        register_task("features", Options)

    return register


def test_a_resumed_run_goes_on_with_the_constants_that_it_had(registered, tmp_path):
    registered(afresh)
    experiment = Experiment("features", {}, gradients=("R",), seeds=(0,), epochs=2, settings=SETTINGS)
    train(experiment, tmp_path / "run")
    before = load_controller(tmp_path / "run")
    trainer = resume(tmp_path / "run", epochs=4)
    assert torch.equal(trainer.policy.constants()["buffer 'frequencies'"], before.constants()["buffer 'frequencies'"])
    losses = trainer.test()
    again = resume(tmp_path / "run")
    assert torch.equal(again.test(), losses)


def test_whoever_looks_at_a_run_computes_with_its_constants(registered, tmp_path):
    registered(afresh)
    experiment = Experiment("features", {}, gradients=("R",), seeds=(0,), epochs=2, settings=SETTINGS)
    trainer = train(experiment, tmp_path / "run")
    kept = trainer.policy.constants()["buffer 'frequencies'"]
    of = watched(str(tmp_path / "run"))
    assert torch.equal(Patient.of(of, 8).policy.constants()["buffer 'frequencies'"], kept)
    simulation = Simulation(of)
    simulation.run(simulation.initial(0), 1)
    assert torch.equal(simulation._policy.constants()["buffer 'frequencies'"], kept)
    assert transferred(tmp_path / "run", (0.1,), "pole_mass")[0.1] == trainer.test().tolist()
    variances = {examine(Patient.of(of, 4), 2, 0.1, None).variances[-1].score for _ in range(2)}
    assert len(variances) == 1  # copies have them too


def test_a_policy_that_is_built_anew_elsewhere_is_not_compared_with_itself(registered, monkeypatch):
    registered(afresh)
    monkeypatch.setattr("benchmarks.doctor.examination.single_precision", lambda *_: pytest.fail("compared"))
    asked = {"task": "features", "options": {"horizon": 10}, "samples": 4}
    assert examine(Patient.of(untrained(task_options("features")()), 4), 0, 0.1, asked).single is None


def test_copies_of_a_score_compute_as_the_policy_does():
    found = {}
    for text in ("R", "score(0.001, 256)"):
        torch.manual_seed(0)
        trainer = Trainer(task_of(afresh), [Member(gradient_named(text).estimator)], SETTINGS)
        trainer.policy.theta.data.copy_(
            0.1 * torch.randn(1, 17, generator=torch.Generator().manual_seed(1), **tensor_options())
        )
        found[text] = trainer.gradient(*next(trainer.batches()))[1]
    one, other = found.values()
    assert float(torch.cosine_similarity(one, other)) > 0.9


def test_a_module_that_two_policies_were_given_is_the_later_ones(tmp_path):
    net = nn.Linear(4, 1, dtype=torch.float64)
    first = ModulePolicy(net, (4,), (1,))
    states = torch.ones(1, 3, 4, **tensor_options())
    first(states)
    second = ModulePolicy(net, (4,), (1,))
    second(states)
    with pytest.raises(PolicyError, match="which another has been given since; give each a module of its own"):
        first(states)
    del second
    first(states)  # a notebook's cell, run again, leaves one behind


def test_short_horizons_of_one_linked_module_are_refused_and_not_left_untrained():
    net = nn.Linear(4, 1, dtype=torch.float64)
    task = task_of(lambda **_: ModulePolicy(net, (4,), (1,)))
    with pytest.raises(PolicyError, match="give each a module of its own"):
        Trainer(task, [Member(gradient_named("score(0.1, 8)").estimator)], SETTINGS).run_epoch()


class Loud(MLP):
    """A user's policy by the name of one that ships."""

    def forward(self, state):
        return 5.0 * torch.tanh(super().forward(state))

    trace = Policy.trace  # type: ignore[assignment]


Loud.__name__ = Loud.__qualname__ = "MLP"


def test_a_users_class_is_not_taken_for_one_that_ships(registered, tmp_path):
    registered(partial(Loud, (4,), (1,), (8,)))
    train(Experiment("features", {}, gradients=("R",), seeds=(0,), epochs=1, settings=SETTINGS), tmp_path / "run")
    assert type(load_controller(tmp_path / "run")) is Loud


def test_a_sampler_that_leaves_its_generator_aside_is_refused():
    task = Task(
        "loose", CartPole(1), build_task("cart-pole").objective, lambda n, g: torch.randn(n, 4), 5,
        policy_for(CartPole(1)),
    )  # fmt: skip
    with pytest.raises(SettingError, match="a sampler of loose that draws from the generator that it is given"):
        Trainer(task, [Member()], SETTINGS)
    Trainer(
        Task("fixed", task.system, task.objective, uniform_states(0.1, 0.1, (4,)), 5, task.policy), [Member()], SETTINGS
    )

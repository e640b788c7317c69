"""Controllers that come back from a run, or from a checkpoint alone, with the parameters that were trained."""

import re
import shutil

import pytest
import torch
from conftest import uniform
from safetensors.torch import load_file, save_file
from test_run import EXPERIMENT, contents

from benchmarks.doctor.patient import Patient
from engine import SettingError, Trajectory, current
from policies import MLP, Convolutional, DeepSets, Linear, ModulePolicy, Moments, PolicyError, Polynomial, policy_from
from training import (
    Experiment,
    RunDirectory,
    TrainingSettings,
    describe_checkpoint,
    load_controller,
    load_task,
    read_checkpoint,
    train,
)  # fmt: skip
from training.errors import RunError
from training.viewing.watching import watched

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=8, test_samples=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """R and C, seeds 0 and 3, four epochs with a checkpoint after every second."""
    path = tmp_path_factory.mktemp("controllers") / "run"
    experiment = Experiment(
        "cart-pole", {"horizon": 8}, gradients=("R", "C"), seeds=(0, 3), epochs=4, checkpoint_every=2, settings=SETTINGS
    )
    train(experiment, path)
    return path


def theta(run, epoch, member):
    return read_checkpoint(run / "checkpoints" / f"epoch-{epoch:06d}.safetensors")[1]["theta"][member]


@pytest.mark.parametrize(
    ("asked", "epoch", "member"),
    [
        (("R", 0), 4, 0),
        (("full", 3), 4, 1),
        (("C", 0, 2), 2, 2),
        (("combined", 3, 0), 0, 3),
        ((None, 0, 0), 0, 0),
    ],
)
def test_a_controller_is_the_one_that_was_asked_for(asked, epoch, member, run):
    before = contents(run)
    policy = load_controller(run, *asked)
    assert torch.equal(policy.theta[0], theta(run, epoch, member))
    assert (policy.members, policy.theta.shape[1]) == (1, policy.parameter_count)
    assert contents(run) == before


def test_without_a_name_it_is_the_best_of_its_epoch(run):
    records = RunDirectory.open(run).metrics()
    for epoch, record in ((2, records[1]), (4, records[3])):
        best = min(range(4), key=record["test_loss"].__getitem__)
        assert torch.equal(load_controller(str(run), epoch=epoch).theta[0], theta(run, epoch, best))
    best = min((2, 3), key=records[3]["test_loss"].__getitem__)
    assert torch.equal(load_controller(RunDirectory.open(run), "C").theta[0], theta(run, 4, best))


def test_it_does_what_the_run_measured(run):
    task, policy = load_task(run), load_controller(run, "C", 3)
    starts = task.initial_states(SETTINGS.test_samples, 3, "test", current().dtype)
    losses = Trajectory(task.system, policy, task.horizon, len(starts), forward_only=True).forward(
        starts, task.objective
    )
    assert float(losses.mean()) == pytest.approx(RunDirectory.open(run).metrics()[-1]["test_loss"][3], rel=1e-12)


def test_a_checkpoint_alone_says_what_it_is(run, tmp_path):
    file = shutil.copy(run / "checkpoints" / "epoch-000002.safetensors", tmp_path / "mine.safetensors")
    told = describe_checkpoint(file)
    assert (told["epoch"], told["config"]["task"], told["config"]["options"]["horizon"]) == (2, "cart-pole", 8)
    assert [(member["gradient"], member["seed"]) for member in told["members"]] == [
        ("R", 0),
        ("R", 3),
        ("C", 0),
        ("C", 3),
    ]
    assert told["policy"] == {"class": "MLP", "state_shape": [4], "control_shape": [1], "hidden": [100, 100],
                              "zero_last": True}  # fmt: skip
    assert torch.equal(load_controller(file, "C", 0).theta[0], theta(run, 2, 2))
    assert torch.equal(load_controller(file, "C", 0, 2).theta[0], theta(run, 2, 2))


def undescribed(file):
    """Make a checkpoint as it was before they were described."""
    epoch, tensors, _ = read_checkpoint(file)
    save_file(tensors, file, {"kind": "evenflow checkpoint", "format": "1", "epoch": str(epoch), "divergences": "[]"})


def test_older_checkpoints_are_read_with_the_help_of_their_run(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "old")
    file = path / "checkpoints" / "epoch-000004.safetensors"
    undescribed(file)
    assert torch.equal(load_controller(path, "C", 3).theta[0], theta(run, 4, 3))
    with pytest.raises(RunError, match="give its run directory"):
        load_controller(file, "C", 3)


MISTAKES = [
    (("Q",), SettingError, r"a gradient among R, M"),
    (("M",), SettingError, r"a controller of .* among R,0, R,3, C,0, C,3, got 'M'"),
    (("R", 1), SettingError, r"among R,0, R,3, C,0, C,3, got 'R,1'"),
    ((None, 7), SettingError, r"among .*, got '7'"),
    (("R", "0"), SettingError, "a seed as a whole number of at least 0, got '0'"),
    ((7,), SettingError, "a gradient as text such as C, got 7"),
    (("R", 0, 3), SettingError, "an epoch of .* with a checkpoint, 0, 2, 4, got 3"),
    (("R", 0, -1), SettingError, "an epoch of .* with a checkpoint, 0, 2, 4, got -1"),
]


@pytest.mark.parametrize(("asked", "kind", "message"), MISTAKES)
def test_what_is_not_there_is_named_with_what_is(asked, kind, message, run):
    with pytest.raises(kind, match=rf"^Expected .*{message}.*\.$"):
        load_controller(run, *asked)


def test_a_checkpoint_alone_takes_no_guess(run):
    file = run / "checkpoints" / "epoch-000002.safetensors"
    with pytest.raises(SettingError, match="got 2 that fit among R,0, R,3, C,0, C,3"):
        load_controller(file, "R")
    with pytest.raises(SettingError, match=r"Expected epoch 2, which .* holds, got 4"):
        load_controller(file, "R", 0, 4)


def test_places_without_a_run_are_told(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path, message in (
        (tmp_path / "nowhere", "which has none"),
        (tmp_path, "which has none"),
        (tmp_path / "notes.txt", "a checkpoint in safetensors"),
    ):
        with pytest.raises(RunError, match=message):
            load_controller(path)
    RunDirectory.create(tmp_path / "new", EXPERIMENT.to_config())
    with pytest.raises(RunError, match="with checkpoints"):
        load_controller(tmp_path / "new")


def test_a_diverged_controller_is_not_passed_off_as_trained(tmp_path):
    experiment = Experiment(
        "cart-pole",
        {"horizon": 8},
        gradients=("R",),
        seeds=(0, 1),
        learning_rates=(1e300,),
        epochs=2,
        settings=SETTINGS,
    )
    train(experiment, tmp_path / "run")
    with pytest.raises(RunError, match=r"^Expected .* by epoch 2, got R with seed 1 .* update .* of epoch 2: .*\.$"):
        load_controller(tmp_path / "run", "R", 1)
    with pytest.raises(RunError, match="had not diverged"):
        load_controller(tmp_path / "run")
    assert torch.equal(load_controller(tmp_path / "run", "R", 1, 0).theta[0], theta(tmp_path / "run", 0, 1))
    patient = Patient.of(watched(f"{tmp_path / 'run'}@R,1"), 2)
    assert re.fullmatch(r"R, seed 1, epoch 2, diverged in update \d+ of epoch 2", patient.name)


def test_edited_settings_are_noticed_by_readers_too(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("horizon: 8", "horizon: 9"))
    with pytest.raises(RunError, match=r"options\.horizon 8 in config\.yaml"):
        load_controller(path, "R", 0)


def test_parameters_come_in_the_precision_of_the_runtime(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    file = path / "checkpoints" / "epoch-000004.safetensors"
    undescribed(file)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in load_file(file).items()}
    save_file(tensors, file, {"kind": "evenflow checkpoint", "format": "1", "epoch": "4", "divergences": "[]"})
    policy = load_controller(path, "C", 3)
    assert policy.dtype == current().dtype
    assert torch.equal(policy.theta[0], theta(run, 4, 3).float().to(current().dtype))


POLICIES = {
    "mlp": lambda **of: MLP((3, 2), (2,), (5, 4), True, **of),
    "linear": lambda **of: Linear((4,), (2,), False, True, **of),
    "linear with bias": lambda **of: Linear((4,), (2,), **of),
    "polynomial": lambda **of: Polynomial((3,), **of),
    "convolutional": lambda **of: Convolutional((2, 20), (1,), (3, 4), 5, 1, True, **of),
    "moments": lambda **of: Moments((4, 7), (2, 2), (0.5,), (6,), True, (3, 1), **of),
    "deep sets": lambda **of: DeepSets((4, 7), (2, 2), (3,), (6, 2), False, **of),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_built_again_from_its_architecture(name):
    policy = POLICIES[name](members=2, dtype=torch.float64)
    for member in range(2):
        policy.initialise(member, torch.Generator().manual_seed(member))
    again = policy_from(policy.architecture, 2, torch.float64)
    assert type(again) is type(policy)
    assert again.architecture == policy.architecture
    with torch.no_grad():
        again.theta.copy_(policy.theta)
    state = uniform(0, 2, 3, *policy.state_shape)
    assert torch.equal(again(state), policy(state))
    fresh = policy_from(policy.architecture, 1, torch.float64)
    fresh.initialise(0, torch.Generator().manual_seed(1))
    assert torch.equal(fresh.theta[0], policy.theta[1])


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        None,
        "MLP",
        {"class": "Policy"},
        {"class": ["MLP"]},
        {"class": "MLP"},
        {"class": "MLP", "state_shape": [4], "control_shape": [1], "hidden": [0]},
        {"class": "MLP", "state_shape": [4], "control_shape": [1], "depth": 3},
        {"class": "MLP", "state_shape": "four", "control_shape": [1]},
        ModulePolicy(torch.nn.Linear(2, 1), (2,), (1,)).architecture,
    ],
    ids=str,
)
def test_an_architecture_that_is_none_is_refused(architecture):
    with pytest.raises(PolicyError, match=r"^Expected an? .*\.$"):
        policy_from(architecture)

"""Experiments: their grid of members, and that a run killed anywhere ends in the numbers of one that was not."""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from children import HANGS, ROOT, Child, run_python

from engine import SettingError
from training import Experiment, RunDirectory, TrainingSettings, read_checkpoint, resume, train
from training.errors import RunError
from training.variant import Label, Variant

pytestmark = pytest.mark.float64

EPOCHS = 40


def experiment(shuffle=True, **options):
    settings = TrainingSettings(train_samples=16, test_samples=8, shuffle=shuffle)
    given = {"seeds": (0, 1), "epochs": EPOCHS, "checkpoint_every": 3, "settings": settings}
    return Experiment("cart-pole", {"horizon": 10}, **{**given, **options})


def outcome(path):
    """All of the metrics but their times, and the last checkpoint."""
    run = RunDirectory.open(path)
    lines = [{name: value for name, value in line.items() if "seconds" not in name} for line in run.metrics()]
    return lines, read_checkpoint(run.checkpoints()[-1])


def equal(one, other):
    (lines, (epoch, tensors, divergences)), (other_lines, (other_epoch, other_tensors, other_divergences)) = one, other
    assert (lines, epoch, divergences) == (other_lines, other_epoch, other_divergences)
    assert tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Outcomes of runs that were never interrupted, by whether they shuffle."""
    found = {}
    for shuffle in (True, False):
        path = tmp_path_factory.mktemp("whole") / "run"
        train(experiment(shuffle), path)
        found[shuffle] = outcome(path)
    return found


@pytest.fixture
def uninterrupted(whole):
    return whole[True]


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import engine
engine.init("cpu", "float64")
from test_experiment import experiment
from training import resume, train
{action}
"""


def start(action):
    source = CHILD.format(tests=str(ROOT / "tests"), action=action)
    return Child([sys.executable, "-c", source])


def lines(path):
    file = path / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def kill_after(process, path, count):
    deadline = time.monotonic() + HANGS
    while lines(path) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
def test_a_run_killed_at_random_and_resumed_equals_one_that_was_not(shuffle, whole, tmp_path):
    draw, path = random.Random(int(shuffle)), tmp_path / "run"
    kill_after(start(f"train(experiment({shuffle}), {str(path)!r})"), path, draw.randint(1, EPOCHS // 2))
    reached = lines(path)
    assert 1 <= reached < EPOCHS
    process = start(f"resume({str(path)!r})")
    kill_after(process, path, draw.randint(reached, EPOCHS - 2))
    resume(path)
    equal(outcome(path), whole[shuffle])


def interrupt_at(epoch, presses=1):
    """A progress callback that presses Ctrl-C after an epoch."""

    def progress(trainer, record):
        if record.epoch == epoch:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_ctrl_c_ends_after_the_epoch_under_way_with_a_checkpoint(uninterrupted, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    assert train(experiment(), tmp_path / "run", interrupt_at(4)).epoch == 4
    assert signal.getsignal(signal.SIGINT) is before
    assert RunDirectory.open(tmp_path / "run").checkpoints()[-1].stem == "epoch-000004"
    seen = []
    resume(tmp_path / "run", lambda trainer, record: seen.append(record.epoch))
    assert seen == list(range(5, EPOCHS + 1))
    equal(outcome(tmp_path / "run"), uninterrupted)


def test_a_second_ctrl_c_ends_at_once_and_loses_nothing(uninterrupted, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(experiment(), tmp_path / "run", interrupt_at(4, presses=2))
    assert signal.getsignal(signal.SIGINT) is before
    resume(tmp_path / "run")
    equal(outcome(tmp_path / "run"), uninterrupted)


def test_a_member_that_diverged_stays_frozen_and_named_after_a_resume(tmp_path):
    settings = {"gradients": ("R",), "learning_rates": (1e-3, 1e300), "epochs": 5}
    train(experiment(**settings), tmp_path / "whole")
    train(experiment(**settings), tmp_path / "run", interrupt_at(2))
    resumed = resume(tmp_path / "run")
    assert [(entry.member, entry.epoch) for entry in resumed.divergences.values()] == [(2, 1), (3, 1)]
    equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_a_damaged_last_checkpoint_can_be_removed_and_the_one_before_continues(uninterrupted, tmp_path):
    path = tmp_path / "run"
    train(experiment(), path, interrupt_at(7))
    last = RunDirectory.open(path).checkpoints()[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(RunError, match="remove it to continue from the one before"):
        resume(path)
    last.unlink()
    resume(path)
    equal(outcome(path), uninterrupted)


def test_a_run_may_go_on_longer_than_it_was_configured_for(uninterrupted, tmp_path):
    path = tmp_path / "run"
    train(experiment(epochs=5), path)
    assert resume(path).epoch == 5  # finished, so left as it is
    resume(path, epochs=EPOCHS)
    equal(outcome(path), uninterrupted)


@pytest.mark.parametrize("epochs", [0, -3])
def test_a_resume_to_no_epochs_is_refused(epochs, tmp_path):
    train(experiment(epochs=1), tmp_path / "run")
    with pytest.raises(SettingError, match=rf"^Expected epochs of at least 1, got {epochs}\.$"):
        resume(tmp_path / "run", epochs=epochs)


def test_only_milestones_and_the_last_two_checkpoints_stay(tmp_path):
    train(experiment(epochs=7, checkpoint_every=1, milestones=(0, 3)), tmp_path / "run")
    kept = [file.stem for file in RunDirectory.open(tmp_path / "run").checkpoints()]
    assert kept == ["epoch-000000", "epoch-000003", "epoch-000006", "epoch-000007"]


def test_members_are_the_grid_and_gradients_that_share_sweeps_stand_together():
    labels = experiment(gradients=("C", "full", "M"), learning_rates=(1e-3, 1e-2), clippings=("none", "norm")).labels()
    assert len(labels) == 3 * 2 * 2 * 2
    assert len(set(labels)) == len(labels)
    order = [label.gradient for label in labels]
    assert order == sorted(order, key="NRCMS".index)


def test_pairs_of_different_gradients_share_seeds():
    labels = experiment(gradients=("R", "C")).labels()
    for letter in "RC":
        assert [label.seed for label in labels if label.gradient == letter] == [0, 1]


def test_chosen_variants_are_trained_instead_of_the_grid():
    labels = experiment(variants=(Variant("combined", "norm", 1e-2), Variant("R")), seeds=(5,)).labels()
    assert labels == [Label(Variant("R", "none", 1e-3), 5), Label(Variant("C", "norm", 1e-2), 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradients": ()}, "at least one of gradients, got none"),
        ({"seeds": ()}, "at least one of seeds, got none"),
        ({"gradients": ("R", "full")}, "each gradient once"),
        ({"gradients": ("Q",)}, "a gradient among"),
        ({"learning_rates": (1e-3, 1e-3)}, "learning rates without repetition"),
        ({"seeds": (0, 1, 0)}, r"seeds without repetition, got \[0, 1, 0\]"),
        ({"variants": (("R", "none", 1e-3), ("full", "none", 1e-3))}, "variants without repetition"),
        ({"variants": (("Q", "none", 1e-3),)}, "a gradient among"),
    ],
)
def test_grids_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SettingError, match=rf"^Expected {message}.*\.$"):
        experiment(**options)


@pytest.mark.parametrize("name", ["epochs", "checkpoint_every"])
def test_no_epochs_are_refused(name):
    with pytest.raises(SettingError, match=rf"^Expected {name.replace('_', ' ')} of at least 1, got 0\.$"):
        replace(experiment(), **{name: 0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "cart-pool"}, "a task among"),
        ({"options": {"polls": 1}}, "options of cart-pole among poles, horizon, dt, got 'polls'"),
        ({"options": {"dt": -0.01}}, "a time step dt above 0 s"),
        ({"clippings": ("hard",)}, "clipping among"),
        ({"settings": {"batch_size": 4}}, "settings such as TrainingSettings"),
    ],
)
def test_settings_that_make_no_sense_leave_no_directory(values, message, tmp_path):
    with pytest.raises(SettingError, match=rf"^Expected {message}.*\.$"):
        train(replace(experiment(), **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task", "cart-pool", "a task among"),
        ("options", {"polls": 1}, "options of cart-pole among poles, horizon, dt, got 'polls'"),
        ("options", {"horizon": True}, "horizon as int, got True"),
        ("options", {"dt": -0.01}, "a time step dt above 0 s"),
        ("options", 5, "options as dict"),
        ("seeds", ["a"], "seeds as tuple"),
        ("seeds", [0, 0], "seeds without repetition"),
        ("seeds", 7, "a complete configuration"),
        ("learning_rates", ["1e-3"], "learning rates as tuple"),
        ("gradients", ["Q"], "a gradient among"),
        ("clippings", ["hard"], "clipping among"),
        ("variants", [["R"]], "variants as a gradient, a clipping and a learning rate each"),
        ("epochs", 4.5, "epochs as int, got 4.5"),
        ("settings", {"junk": 1}, "settings among batch_size"),
        ("settings", {"shuffle": "no"}, "shuffle as bool, got 'no'"),
        ("settings", {"batch_size": 0}, "batch_size of at least 1, got 0"),
        ("settings", {"optimiser": "adamw"}, "an optimiser among"),
        ("settings", {"memory": "lots"}, "a memory budget"),
        ("settings", None, "a complete configuration"),
    ],
)
def test_a_resume_refuses_a_configuration_that_makes_no_sense_and_changes_nothing(name, value, message, tmp_path):
    run = RunDirectory.create(tmp_path / "run", experiment().to_config())
    file = run.path / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {name: value}))
    before = file.read_bytes()
    with pytest.raises(RunError, match=rf"^Expected {message}.* config\.yaml.*\.$"):
        resume(run.path)
    assert file.read_bytes() == before
    assert [entry.name for entry in run.path.iterdir() if entry.is_file()] == ["config.yaml"]


def test_the_same_seed_gives_the_same_numbers_in_another_process(uninterrupted):
    action = "import json; print(json.dumps([r.test_loss for r in experiment().trainer().fit(3)]))"
    done = run_python(CHILD.format(tests=str(ROOT / "tests"), action=action))
    assert json.loads(done.stdout.splitlines()[-1]) == [line["test_loss"] for line in uninterrupted[0][:3]]


def test_a_directory_that_is_taken_is_told_before_anything_is_prepared(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("of the user's")
    monkeypatch.setattr(Experiment, "trainer", lambda *arguments: pytest.fail("prepared"))
    with pytest.raises(RunError, match=r"^Expected an empty or new run directory, got .*, which holds files; .*\.$"):
        train(experiment(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]

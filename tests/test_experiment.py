"""Experiments: their grid of members, and that a run killed anywhere ends in the numbers of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, run_python

from engine import SettingError
from training import Experiment, RunDirectory, TrainingSettings, read_checkpoint, resume, train

pytestmark = pytest.mark.float64

EPOCHS = 40


def experiment(**options):
    settings = TrainingSettings(train_samples=16, test_samples=8, shuffle=True)
    return Experiment(
        "cart-pole", {"horizon": 10}, seeds=(0, 1), epochs=EPOCHS, checkpoint_every=3, settings=settings, **options
    )


def outcome(path):
    """All losses by epoch, and the tensors of the last checkpoint."""
    run = RunDirectory.open(path)
    losses = [(line["epoch"], line["train_loss"], line["test_loss"]) for line in run.metrics()]
    return losses, read_checkpoint(run.checkpoints()[-1])[1]


def equal(one, other):
    assert one[0] == other[0]
    assert set(one[1]) == set(other[1])
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train(experiment(), path)
    return outcome(path)


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
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", source], env=environment)


def lines(path):
    file = path / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def kill_after(process, path, count):
    deadline = time.monotonic() + 120
    while lines(path) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("attempt", range(2))
def test_a_run_killed_at_random_and_resumed_equals_one_that_was_not(attempt, uninterrupted, tmp_path):
    draw, path = random.Random(attempt), tmp_path / "run"
    kill_after(start(f"train(experiment(), {str(path)!r})"), path, draw.randint(1, EPOCHS // 2))
    reached = lines(path)
    assert 1 <= reached < EPOCHS
    process = start(f"resume({str(path)!r})")
    kill_after(process, path, draw.randint(reached, EPOCHS - 2))
    resume(path)
    equal(outcome(path), uninterrupted)


def interrupt_at(epoch):
    """A progress callback that presses Ctrl-C after an epoch."""

    def progress(trainer, record):
        if record.epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_ctrl_c_ends_after_the_epoch_under_way_with_a_checkpoint(uninterrupted, tmp_path):
    assert train(experiment(), tmp_path / "run", interrupt_at(4)).epoch == 4
    seen = []
    resume(tmp_path / "run", lambda trainer, record: seen.append(record.epoch))
    assert seen == list(range(5, EPOCHS + 1))
    equal(outcome(tmp_path / "run"), uninterrupted)


def test_a_damaged_last_checkpoint_can_be_removed_and_the_one_before_continues(uninterrupted, tmp_path):
    path = tmp_path / "run"
    train(experiment(), path, interrupt_at(7))
    last = RunDirectory.open(path).checkpoints()[-1]
    last.unlink()
    resume(path)
    equal(outcome(path), uninterrupted)


def test_a_finished_run_is_left_as_it_is(uninterrupted, tmp_path):
    path = tmp_path / "run"
    train(experiment(), path)
    assert resume(path).epoch == EPOCHS
    equal(outcome(path), uninterrupted)


def test_members_are_the_grid_and_gradients_that_share_sweeps_stand_together():
    labels = experiment(gradients=("C", "full", "M"), learning_rates=(1e-3, 1e-2), clippings=("none", "norm")).labels()
    assert len(labels) == 3 * 2 * 2 * 2
    assert len({tuple(label.values()) for label in labels}) == len(labels)
    order = [label["gradient"] for label in labels]
    assert order == sorted(order, key="NRCMS".index)


def test_pairs_of_different_gradients_share_seeds():
    labels = experiment(gradients=("R", "C")).labels()
    for letter in "RC":
        assert [label["seed"] for label in labels if label["gradient"] == letter] == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradients": ()}, "at least one of gradients, got none"),
        ({"gradients": ("R", "full")}, "each gradient once"),
        ({"gradients": ("Q",)}, "a gradient among"),
        ({"learning_rates": (1e-3, 1e-3)}, "learning rates without repetition"),
    ],
)
def test_grids_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SettingError, match=f"^Expected {message}"):
        experiment(**options)


@pytest.mark.parametrize("name", ["epochs", "checkpoint_every"])
def test_no_epochs_are_refused(name):
    with pytest.raises(SettingError, match=f"^Expected {name.replace('_', ' ')} of at least 1, got 0"):
        replace(experiment(), **{name: 0})


def test_the_same_seed_gives_the_same_numbers_in_another_process(uninterrupted):
    action = "import json; print(json.dumps([r.test_loss for r in experiment().trainer().fit(3)]))"
    done = run_python(CHILD.format(tests=str(ROOT / "tests"), action=action))
    assert json.loads(done.stdout.splitlines()[-1]) == [line[2] for line in uninterrupted[0][:3]]

"""Whatever a run is described by comes back from its files, and whatever ends it leaves its last epoch."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from engine import Noise, SettingError
from training import Experiment, Member, RunDirectory, Trainer, TrainingSettings, build_task, resume, train
from training.controllers import addressed
from training.machine import console
from training.task import MOST_SEEDS
from training.trainer import Trainer as Training

pytestmark = pytest.mark.float64

SMALL = TrainingSettings(train_samples=16, test_samples=8)


def experiment(**given):
    defaults = {"gradients": ("R",), "seeds": (0,), "epochs": 2, "settings": SMALL}
    return Experiment("cart-pole", {"horizon": 6}, **(defaults | given))


FORMS = {
    "bytes": {"settings": replace(SMALL, memory=2**28)},
    "a range": {"randomise": (("pole_mass", 0.08, 0.12),)},
    "text": {"randomise": "pole_mass=0.08:0.12"},
    "a value": {"randomise": ["pole_mass=0.1"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_trains_can_be_gone_on_with(form, tmp_path):
    trained = train(experiment(**FORMS[form]), tmp_path / "run")
    again = resume(tmp_path / "run")
    assert torch.equal(again.policy.theta, trained.policy.theta)
    assert again.task.randomise == trained.task.randomise


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"milestones": 5}, "milestones as a tuple"),
        ({"seeds": (MOST_SEEDS,)}, f"seeds below {MOST_SEEDS}"),
        ({"randomise": 3}, "a range as"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_given(given, message):
    with pytest.raises(SettingError, match=message):
        experiment(**given)


def test_an_error_in_an_epoch_leaves_a_checkpoint_of_the_one_before(tmp_path, monkeypatch):
    update = Training.update

    def failing(trainer, *given):
        if (trainer.epoch, trainer.updates) == (3, 1):
            raise ZeroDivisionError
        return update(trainer, *given)

    whole = train(experiment(epochs=5), tmp_path / "whole")
    monkeypatch.setattr(Training, "update", failing)
    with pytest.raises(ZeroDivisionError):
        train(experiment(epochs=5, checkpoint_every=100), tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    assert run.epoch == len(run.metrics()) == 3
    monkeypatch.undo()
    assert torch.equal(resume(tmp_path / "run").policy.theta, whole.policy.theta)


def test_a_loop_of_ones_own_has_other_noise_at_every_update():
    task = replace(build_task("cart-pole", horizon=6), noise=Noise(control=0.1))
    trainer = Trainer(task, [Member()], SMALL)
    states, _ = next(trainer.batches())
    controls = []
    for _ in range(2):
        with torch.no_grad():
            trainer.policy.theta.zero_()  # so that all of a control is noise
        trainer.update(states)
        controls.append(trainer.rollout.controls.clone())
    assert not torch.equal(*controls)
    assert trainer.updates == 2


def test_an_address_may_have_an_at_in_its_directory(tmp_path):
    home = tmp_path / "a@b.c" / "run"
    home.mkdir(parents=True)
    assert addressed(str(home)) == (str(home), None, None)
    assert addressed(f"{home}@C,3") == (str(home), "C", 3)
    assert addressed("run@clip-norm(R, 1),3") == ("run", "clip-norm(R, 1)", 3)


def test_brackets_of_a_path_are_printed_as_they_are(monkeypatch):
    assert not console._markup
    written = io.StringIO()
    Console(file=written, markup=console._markup).print("written: runs/a[lr=0.1]/[/y].png")
    assert written.getvalue() == "written: runs/a[lr=0.1]/[/y].png\n"

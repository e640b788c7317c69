"""A third set of starts: what is chosen on it, and that nothing changes where there is none."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.packs import run_study
from benchmarks.studies.study import Study
from training import Experiment, Member, RunDirectory, Trainer, TrainingSettings, build_task, resume, train
from training.optimisers import settings_from_file, settings_to_file

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=16, test_samples=8, validation_samples=12)
NONE = replace(SETTINGS, validation_samples=0)


def test_the_three_sets_are_different_and_the_third_changes_nothing():
    task = build_task("cart-pole", poles=1, horizon=20)
    sets = [task.initial_states(4, 0, stream, torch.float64) for stream in ("train", "validation", "test")]
    assert not any(torch.equal(sets[one], sets[other]) for one, other in ((0, 1), (1, 2), (0, 2)))
    found, expected = (list(Trainer(task, [Member(), Member(seed=1)], of).fit(2)) for of in (SETTINGS, NONE))
    assert [record.test_loss for record in found] == [record.test_loss for record in expected]
    assert [record.validation_loss for record in expected] == [None, None]
    trainer = Trainer(task, [Member(), Member(seed=1)], SETTINGS)
    *_, last = trainer.fit(2)
    states = task.initial_states(12, 1, "validation", torch.float64)
    other = Trainer(task, [Member(seed=1)], replace(NONE, test_samples=12))
    other.policy.theta.data.copy_(trainer.policy.theta.data[1:])
    losses = other.evaluation.forward(states, task.objective)
    assert losses is not None
    assert last.validation_loss is not None
    assert last.validation_loss[1] == pytest.approx(float(losses.mean()), rel=1e-12)


def test_files_without_a_third_set_are_as_they_were():
    assert "validation_samples" not in settings_to_file(asdict(NONE))
    assert settings_to_file(asdict(SETTINGS))["validation_samples"] == 12
    assert settings_from_file(settings_to_file(asdict(NONE))) == asdict(NONE)
    assert settings_from_file(settings_to_file(asdict(SETTINGS))) == asdict(SETTINGS)


def test_a_run_keeps_its_validation_losses_and_goes_on(tmp_path):
    options = {"poles": 1, "horizon": 10}
    shorter = Experiment("cart-pole", options, gradients=("R",), seeds=(0, 1), epochs=2, settings=SETTINGS)
    train(replace(shorter, epochs=3), tmp_path / "whole")
    train(shorter, tmp_path / "run")
    resume(tmp_path / "run", epochs=3)
    whole, found = (RunDirectory.open(tmp_path / name).metrics() for name in ("whole", "run"))
    assert [record["validation_loss"] for record in found] == [record["validation_loss"] for record in whole]
    assert len(found[-1]["validation_loss"]) == 2


def test_studies_report_the_epoch_that_is_best_on_validation(tmp_path):
    study = Study("cart-pole", {"horizon": 10}, (1,), gradients=("R", "M"), seed_count=2, epochs=3, settings=SETTINGS)
    run_study(study, tmp_path / "study")
    for line, result in zip(
        StudyDirectory(tmp_path / "study").lines, StudyDirectory(tmp_path / "study").results, strict=True
    ):
        best = min(range(3), key=line["validation_loss"].__getitem__)
        assert (result.chosen_epoch, result.final_loss) == (best + 1, line["test_loss"][best])
        assert json.loads(json.dumps(line)) == line


def test_a_training_that_diverged_stays_the_worst_whatever_was_best_before():
    line = {"phase": "report", "difficulty": 1, "gradient": "R", "clipping": "none", "learning_rate": 1e-3, "seed": 0,
            "options": {}, "run": "r", "member": 0, "test_loss": [1.0, 0.5, None],
            "validation_loss": [0.9, 1.0, None]}  # fmt: skip
    assert Result.of(line).final_loss == math.inf
    kept = Result.of({**line, "test_loss": [1.0, 0.5, 0.7], "validation_loss": [0.9, 1.0, 0.9]})
    assert (kept.chosen_epoch, kept.final_loss) == (1, 1.0)
    assert Result.of({**line, "test_loss": [1.0, 0.5, 0.7], "validation_loss": []}).final_loss == 0.7

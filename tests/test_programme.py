"""The paper's programme: every training once, in stages, resumable, with its hours told before."""

import itertools

import pytest
from rich.console import Console

import evenflow
from benchmarks.studies import programme as programme_module
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import run_study
from benchmarks.studies.programme import plan, print_plan, programme, report_programme, run_programme, stages
from benchmarks.studies.study import Study
from engine import SettingError
from training import TrainingSettings

pytestmark = pytest.mark.float64

SMALL = TrainingSettings(train_samples=8, test_samples=4)


def small(**options):
    given = {"gradients": ("R", "M", "C", "S"), "clippings": ("none", "norm"), "seed_count": 6, "epochs": 1}
    return Study("cart-pole", {"horizon": 5}, (1, 2), settings=SMALL, **(given | options))


def trainings(study):
    return list(itertools.product(study.gradients, study.clippings, study.seeds))


def test_the_stages_of_a_study_hold_every_training_once():
    for study in programme(programme_module.TASKS, 10, 1000).values():
        held = [
            (variant.gradient, variant.clipping, seed)
            for stage in stages(study)
            for variant in stage.variants
            for seed in stage.seeds
        ]
        assert sorted(held) == sorted(trainings(study))
        first = stages(study)[0]
        assert {variant.gradient for variant in first.variants} == {"R", "M", "C"}
        assert {variant.clipping for variant in first.variants} == {"none"}
        assert first.seeds == (0, 1, 2, 3)


def test_the_programme_is_the_papers():
    studies = programme(["quantum", "cart-pole", "guidance"], 10, 1000)
    assert studies["cart-pole"].difficulties == (1, 2, 3, 4)
    assert studies["guidance"].difficulties == (1.0, 0.1, 0.01, 0.001)
    assert studies["quantum"].difficulties == (3, 4, 5)
    with pytest.raises(SettingError, match=r"Expected tasks of the paper, cart-pole, guidance, quantum, got 'swarm'\."):
        programme(["swarm"], 10, 1000)


def test_it_trains_stage_by_stage_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    study, console = small(), Console(quiet=True)
    done = []

    def stop_after_two(study, out, console, workers, stopping, stage):
        train_shown(study, out, console, workers, stopping, stage)
        done.append(stage.name)
        if len(done) == 2:
            raise KeyboardInterrupt

    train_shown = programme_module.train_shown
    monkeypatch.setattr(programme_module, "train_shown", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_programme({"cart-pole": study}, tmp_path, console)
    assert done == ["first", "seeds"]
    half = StudyDirectory(tmp_path / "cart-pole").results
    assert len(half) == 2 * 3 * 6
    left = {(entry.stage, entry.difficulty): entry.trainings for entry in plan({"cart-pole": study}, tmp_path)}
    assert left["first", 1] == left["seeds", 2] == 0
    assert left["others", 1] == 6
    assert sum(left.values()) == 2 * len(trainings(study)) - len(half)
    run_programme({"cart-pole": study}, tmp_path, console)
    results = StudyDirectory(tmp_path / "cart-pole").results
    found = [
        (result.difficulty, result.label.gradient, result.variant.clipping, result.label.seed) for result in results
    ]
    assert sorted(found) == sorted((poles, *one) for poles in (1, 2) for one in trainings(study))
    assert results[: len(half)] == half
    assert sum(entry.hours for entry in plan({"cart-pole": study}, tmp_path)) == 0.0


def test_a_training_does_not_depend_on_the_stages(tmp_path):
    study, console = small(seed_count=5, clippings=("none",)), Console(quiet=True)
    run_programme({"cart-pole": study}, tmp_path / "staged", console)
    run_study(study, tmp_path / "whole")
    staged, whole = (
        {(result.difficulty, result.label): result.final_loss for result in StudyDirectory(place).results}
        for place in (tmp_path / "staged" / "cart-pole", tmp_path / "whole")
    )
    assert staged.keys() == whole.keys()
    for key, loss in staged.items():
        assert loss == pytest.approx(whole[key], rel=1e-12)


def test_the_hours_are_told_and_reports_written(tmp_path):
    study, console = small(seed_count=2), Console(record=True, width=100)
    print_plan({"cart-pole": study}, tmp_path, console)
    told = console.export_text()
    assert "first" in told
    assert "hours are left on this machine" in told
    assert not any(tmp_path.iterdir())
    run_programme({"cart-pole": study}, tmp_path, Console(quiet=True))
    written = report_programme({"cart-pole": study}, tmp_path, Console(quiet=True))
    assert (tmp_path / "cart-pole" / "report.md") in written


def test_a_task_that_the_paper_does_not_have_is_one_sentence(tmp_path, capsys):
    command = ["bench", "paper", "--out", str(tmp_path / "paper"), "--tasks", "swarm", "--backend", "cpu"]
    assert evenflow.main([*command, "--precision", "float64"]) == 2
    assert "Expected tasks of the paper, cart-pole, guidance, quantum, got 'swarm'." in capsys.readouterr().err
    assert not (tmp_path / "paper").exists()

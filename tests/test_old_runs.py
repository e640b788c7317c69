"""Runs and studies from before "adam" was Keras' form: they open, say so, and go on by torch's form."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from children import ROOT
from rich.console import Console

import evenflow
from benchmarks.studies.comparisons import table
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import run_study
from benchmarks.studies.page import write_page
from benchmarks.studies.report import write_report
from benchmarks.studies.study import Study
from benchmarks.studies.variants import compare
from training import Experiment, RunDirectory, TrainingSettings, read_checkpoint, resume, train
from training.errors import RunError
from training.optimisers import settings_from_file, settings_to_file

pytestmark = pytest.mark.float64

SENTENCE = 'Made by Adam as torch has it, which was called "adam" then and is "adam-torch" now; it goes on with that'


def experiment(optimiser, epochs=4):
    settings = TrainingSettings(batch_size=4, train_samples=8, test_samples=4, optimiser=optimiser)
    options = {"horizon": 10}
    return Experiment(
        "cart-pole", options, gradients=("R",), seeds=(0,), epochs=epochs, checkpoint_every=2, settings=settings
    )


def written_before(file: Path) -> None:
    """Let a file say what files said before: "adam", and torch's form meant."""
    text = file.read_text()
    assert "adam-torch" in text
    file.write_text(text.replace("adam-torch", "adam"))


def weights(path):
    run = RunDirectory.open(path)
    return read_checkpoint(run.checkpoints()[-1])[1]["theta"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights after four epochs by each Adam."""
    found = {}
    for name in ("adam", "adam-torch"):
        path = tmp_path_factory.mktemp(name) / "run"
        train(experiment(name), path)
        found[name] = weights(path)
    assert not torch.equal(found["adam"], found["adam-torch"])
    return found


def test_an_old_run_goes_on_by_torchs_form_and_says_so(whole, tmp_path):
    path = tmp_path / "run"
    train(experiment("adam-torch", epochs=2), path)
    written_before(path / "config.yaml")
    with pytest.warns(UserWarning, match=f"^{SENTENCE}.*Keras does\\.$"):
        assert resume(path, epochs=4).settings.optimiser == "adam-torch"
    assert torch.equal(weights(path), whole["adam-torch"])
    assert RunDirectory.open(path).config["settings"]["optimiser"] == "adam"  # as it was written
    with pytest.warns(UserWarning, match=f"^{SENTENCE}"):
        assert resume(path, epochs=5).epoch == 5


@pytest.mark.parametrize("name", ["adam", "adam-torch"])
def test_a_new_run_goes_on_by_its_own_form_without_a_word(name, whole, tmp_path):
    path = tmp_path / "run"
    train(experiment(name, epochs=2), path)
    assert RunDirectory.open(path).config["settings"]["optimiser"] in ("adam-keras", "adam-torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(path, epochs=4).settings.optimiser == name
    assert torch.equal(weights(path), whole[name])


def test_the_command_line_says_it_in_one_sentence(tmp_path, capsys):
    path = tmp_path / "run"
    train(experiment("adam-torch", epochs=2), path)
    written_before(path / "config.yaml")
    assert evenflow.main(["train", "--resume", str(path), "--epochs", "3"]) == 0
    said = capsys.readouterr()
    assert SENTENCE in " ".join((said.out + said.err).split())
    assert "UserWarning" not in said.out + said.err


def test_pages_name_the_form_that_a_run_was_made_by(tmp_path):
    for name, told in (("adam", "adam-keras"), ("adam-torch", "adam-torch")):
        path = tmp_path / name
        train(experiment(name, epochs=1), path)
        assert f"optimiser: {told}" in write_page(path).read_text()
    written_before(path / "config.yaml")
    assert "optimiser: adam-torch" in write_page(path).read_text()


def study(optimiser, **options):
    settings = TrainingSettings(batch_size=4, train_samples=8, test_samples=4, optimiser=optimiser)
    given = {"gradients": ("R",), "seed_count": 2, "epochs": 2} | options
    return Study("cart-pole", {"horizon": 10}, (1,), settings=settings, **given)


@pytest.fixture
def old_study(tmp_path):
    """A study from before, one of whose two trainings is not noted yet and whose last line was cut off."""
    out = tmp_path / "study"
    run_study(study("adam-torch"), out)
    written_before(out / "study.yaml")
    for file in out.glob("*/*/config.yaml"):
        written_before(file)
    written_before(out / "results.jsonl")
    first, second = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text(first + second[:40])
    return out, json.loads(second)


def test_an_old_study_goes_on_by_torchs_form_alone(old_study):
    out, second = old_study
    with pytest.raises(RunError, match=r"begun with, adam-torch, got adam; continue with --optimiser adam-torch or"):
        run_study(study("adam"), out)
    with pytest.raises(RunError, match=r"begun with, adam-torch, got adam; continue with"):
        compare(study("adam"), out, Console(), train=False)
    with pytest.warns(UserWarning, match=SENTENCE):
        run_study(study("adam-torch"), out)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["settings"]["optimiser"] for line in lines] == ["adam", "adam-torch"]
    assert [result["settings"]["optimiser"] for result in StudyDirectory(out).lines] == ["adam-torch"] * 2
    assert lines[1]["test_loss"] == second["test_loss"]


def test_reports_of_a_study_name_its_optimiser(old_study, tmp_path):
    write_report(old_study[0], None, {})
    assert "Optimiser: adam-torch, m̂ / (√v̂ + ε)" in (old_study[0] / "report.md").read_text()
    assert '"optimiser": "adam-torch"' in (old_study[0] / "report.json").read_text()
    out = tmp_path / "new"
    run_study(study("adam", seed_count=1, epochs=1), out)
    write_report(out, None, {})
    assert re.search(r"Optimiser: adam, .*; Keras' form", (out / "report.md").read_text())
    assert '"optimiser": "adam-keras"' in (out / "report.json").read_text()
    assert StudyDirectory(out).config["settings"]["optimiser"] == "adam"


@pytest.mark.parametrize("name", ["cart-pole", "guidance", "quantum"])
def test_committed_studies_are_read_as_what_they_were_made_by(name):
    out = ROOT / "docs" / "results" / name
    assert StudyDirectory(out).config["settings"]["optimiser"] == "adam-torch"
    assert {result["settings"]["optimiser"] for result in StudyDirectory(out).lines} == {"adam-torch"}
    assert table(out, None, {})
    assert "Optimiser: adam-torch" in (out / "report.md").read_text()


@pytest.mark.parametrize("settings", [None, 3, {}, {"optimiser": None}, {"optimiser": ["adam"]}])
def test_settings_without_a_name_pass_for_others_to_refuse(settings):
    assert settings_from_file(settings) == settings


def test_what_files_say_is_read_back():
    for name in ("adam", "adam-torch", "sgd", "unknown"):
        settings = {"optimiser": name, "validation_samples": 0}
        assert settings_from_file(settings_to_file(settings)) == settings

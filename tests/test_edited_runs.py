"""Configurations edited between two sittings of a training: a new total of epochs, and what may not change."""

from dataclasses import replace

import pytest
import yaml
from test_experiment import equal, outcome
from test_signals import EXPERIMENT, at, closed_pipe, trained_whole

import evenflow
from engine import SettingError
from training import RunDirectory, resume, train
from training.errors import RunError

pytestmark = pytest.mark.float64


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained_whole(tmp_path_factory)


class TestATotalOfEpochs:
    """A new total is remembered, and says so where it makes no sense."""

    @pytest.fixture
    def short(self, tmp_path):
        train(replace(EXPERIMENT, epochs=3), tmp_path / "run")
        return tmp_path / "run"

    def test_is_recorded_without_a_change_to_anything_else(self, short, whole):
        file = short / "config.yaml"
        file.write_text(file.read_text().replace("epochs: 3", "epochs: 3  # at first") + "# mine\n")
        before = file.read_text()
        with pytest.raises(BrokenPipeError):
            resume(short, at(4, closed_pipe), epochs=6)
        assert file.read_text() == before.replace("epochs: 3  # at first", "epochs: 6")
        assert resume(short).epoch == 6
        equal(outcome(short), whole)

    def test_is_recorded_however_the_file_is_written(self, short, whole):
        file = short / "config.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()), default_flow_style=True))
        resume(short, epochs=6)
        assert RunDirectory.open(short).config["epochs"] == 6
        equal(outcome(short), whole)

    def test_below_what_is_done_is_refused(self, short):
        with pytest.raises(SettingError, match=r"at least the 3 epochs that .* has, got 2; give more to train on"):
            resume(short, epochs=2)
        assert RunDirectory.open(short).config["epochs"] == 3

    def test_that_is_done_is_left_as_it_is(self, short, monkeypatch, capsys):
        before = {file: file.read_bytes() for file in short.rglob("*") if file.is_file()}
        assert resume(short).epoch == resume(short, epochs=3).epoch == 3
        assert {file: file.read_bytes() for file in short.rglob("*") if file.is_file()} == before
        monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)
        for total in ([], ["--epochs", "3"]):
            assert evenflow.main(["train", "--resume", str(short), *total]) == 0
            assert "nothing to train: the run has its 3 epochs" in capsys.readouterr().out

    def test_the_users_own_figure_outlives_the_end_of_a_training(self, short, monkeypatch, capsys):
        monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)
        assert evenflow.main(["train", "--resume", str(short)]) == 0
        assert f"figure: {short / 'losses.png'}\n" in capsys.readouterr().out
        (short / "losses.png").write_text("mine")
        for total in ("4", "5"):
            assert evenflow.main(["train", "--resume", str(short), "--epochs", total]) == 0
            assert "losses-2.png; losses.png is not as Evenflow wrote it, and stays" in capsys.readouterr().out
        assert (short / "losses.png").read_text() == "mine"
        assert (short / "losses-2.png").read_bytes().startswith(b"\x89PNG")
        assert not (short / "losses-3.png").exists()

    def test_metrics_shorter_than_the_checkpoint_are_not_trained_over(self, short):
        file = short / "metrics.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
        with pytest.raises(RunError, match=r"metrics of 3 epochs in .*, got 2; restore the file"):
            resume(short, epochs=6)
        assert RunDirectory.open(short).config["epochs"] == 3


EDITS = {
    "learning_rates": ("- 0.001", "- 0.01"),
    "gradients": ("- C", "- M"),
    "seeds": ("seeds:\n- 0", "seeds:\n- 7"),
    "clippings": ("- none", "- norm"),
    "settings.batch_size": ("batch_size: 8", "batch_size: 4"),
    "settings.optimiser": ("optimiser: ", "optimiser: sgd #"),
    "settings.shuffle": ("shuffle: true", "shuffle: false"),
    "settings.test_samples": ("test_samples: 8", "test_samples: 4"),
    "options.horizon": ("horizon: 5", "horizon: 6"),
    "options.poles": ("poles: 1", "poles: 2"),
    "runtime.precision": ("precision: float64", "precision: float32"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    path = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(BrokenPipeError):
        train(EXPERIMENT, path, at(2, closed_pipe))
    return path


@pytest.mark.parametrize("name", EDITS)
def test_a_setting_edited_by_hand_is_named(name, begun):
    file = begun / "config.yaml"
    text = file.read_text()
    assert EDITS[name][0] in text
    try:
        file.write_text(text.replace(*EDITS[name]))
        with pytest.raises(RunError, match=rf"^Expected {name} .* in config\.yaml, as .* was trained with, got .*\.$"):
            resume(begun)
    finally:
        file.write_text(text)


def test_how_long_and_how_often_may_be_edited(begun, whole):
    file = begun / "config.yaml"
    text = file.read_text().replace("checkpoint_every: 4", "checkpoint_every: 5").replace("epochs: 6", "epochs: 5")
    file.write_text(text)
    assert resume(begun).epoch == 5
    file.write_text(text.replace("epochs: 5", "epochs: 6"))
    resume(begun)
    equal(outcome(begun), whole)

"""Pictures of what a run amounts to, and its controllers at other sizes."""

from dataclasses import replace
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

import benchmarks.studies.outcome as outcome_module
import evenflow
from benchmarks.studies.outcome import outcome_figure
from benchmarks.studies.transfer import transfer_table, transferred
from engine import SettingError
from training import Experiment, RunDirectory, train
from training.errors import RunError
from training.settings import TrainingSettings
from training.summary import groups
from training.viewing.palette import BLUE, GREEN, VERMILION

pytestmark = pytest.mark.float64
SMALL = TrainingSettings(batch_size=2, train_samples=2, test_samples=3)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    path = tmp_path_factory.mktemp("outcome") / "run"
    options = {"evaders": 60, "drivers": 3, "horizon": 12}
    train(
        Experiment(
            "swarm", options, gradients=("R", "C"), seeds=(0, 1), learning_rates=(1e-2,), epochs=2, settings=SMALL
        ),
        path,
    )
    return path


def spots(picture, colour):
    """How many pixels of a picture [height, width, 3] have this colour, within what resampling does to it."""
    wanted = np.array([(colour >> shift) & 255 for shift in (16, 8, 0)])
    return int((np.abs(picture.astype(int) - wanted).max(2) < 50).sum())


def test_the_picture_shows_the_start_and_an_end_for_each_gradient(swarm, tmp_path):
    picture = imageio.imread(outcome_figure(swarm, tmp_path / "outcome.png"))[..., :3]
    panels = [picture[:, third] for third in np.array_split(np.arange(picture.shape[1]), 3)]
    for panel in panels:
        assert min(spots(panel, VERMILION), spots(panel, BLUE)) > 20
        assert spots(panel, GREEN) > 5
    width = min(panel.shape[1] for panel in panels)
    assert (panels[0][:, :width] != panels[2][:, :width]).any()


def test_a_title_of_any_length_is_drawn_within_its_panel(swarm, tmp_path, monkeypatch):
    long = "every-step(clip-norm(decay-rate(where-agree(M, R, bisect(M, R)), 15), 0.1))"
    monkeypatch.setattr(outcome_module, "groups", lambda labels: [replace(one, name=long) for one in groups(labels)])
    monkeypatch.setattr(outcome_module, "save", lambda figure, path: figure)
    figure: Any = outcome_figure(swarm, tmp_path / "long.png")
    figure.draw_without_rendering()
    drawn = [axes.title.get_window_extent() for axes in figure.axes]
    assert len(drawn) == 3
    for title, axes in zip(drawn, figure.axes, strict=True):
        assert min(title.x0, figure.bbox.x1 - title.x1, figure.bbox.y1 - title.y1) >= 0
        assert title.width <= 1.05 * axes.bbox.width


def test_a_picture_needs_a_run_and_a_new_file(swarm, tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    with pytest.raises(RunError, match="which exists"):
        outcome_figure(swarm, tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_text() == "mine"
    with pytest.raises(RunError, match="Expected a run directory"):
        outcome_figure(tmp_path / "nothing", tmp_path / "new.png")


def test_at_the_trained_size_the_losses_are_those_of_the_training(swarm):
    found = transferred(swarm, (60.0, 25.0))
    assert list(found) == [60, 25]
    assert found[60] == pytest.approx(RunDirectory.open(swarm).metrics()[-1]["test_loss"], rel=1e-9)
    assert np.isfinite(found[25]).all()
    assert found[25] != found[60]
    table = transfer_table(swarm, found)
    assert [column.header for column in table.columns] == ["gradient", "evaders 60", "evaders 25"]
    assert list(table.columns[0].cells) == ["R", "C"]


def test_a_policy_of_another_size_and_half_an_evader_are_refused(swarm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)  # the session has its runtime
    with pytest.raises(SettingError, match=r"Expected evaders as int, got 2\.5"):
        transferred(swarm, (2.5,))
    train(
        Experiment("cart-pole", {"horizon": 3}, gradients=("R",), seeds=(0,), epochs=1, settings=SMALL),
        tmp_path / "poles",
    )
    assert evenflow.main(["bench", "transfer", str(tmp_path / "poles"), "--difficulties", "2"]) == 2
    error = capsys.readouterr().err
    assert "choose a task whose policy takes any size" in error
    assert error.count("\n") == 1

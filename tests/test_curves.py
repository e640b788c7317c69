"""The loss figure of a run: medians, bands, and seeds that diverged."""

import numpy as np
import pytest

from training import RunDirectory
from training.curves import _title, draw_group, loss_figure
from training.style import epochs_and_log, new_figure, save
from training.summary import Group
from training.tasks.swarm import SwarmOptions
from training.trainer import EpochRecord
from training.variant import Label, Variant
from training.viewing.palette import styles_of

COLOURS = {letter: style.colour for letter, style in styles_of("RMSNC").items()}
pytestmark = pytest.mark.float64


def test_the_line_is_the_median_and_the_band_the_range_of_seeds_that_are_left():
    _, (axes,) = new_figure(3, 3)
    losses = np.array([[1.0, 3.0, 5.0], [1.0, 2.0, np.nan], [np.nan, np.nan, np.nan]])
    draw_group(axes, np.array([1, 2, 3]), losses, Group("C", Variant("C"), (0, 1, 2)))
    (line,) = axes.lines
    assert np.asarray(line.get_xydata()).tolist() == [[1, 3.0], [2, 1.5]]
    assert line.get_color() == COLOURS["C"]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} == {(1, 1.0), (1, 5.0), (2, 1.0), (2, 2.0)}


def test_colours_differ_in_lightness_so_that_grey_print_tells_them_apart():
    light = sorted(
        0.2126 * int(c[1:3], 16) + 0.7152 * int(c[3:5], 16) + 0.0722 * int(c[5:], 16) for c in COLOURS.values()
    )
    assert min(np.diff(light)) > 8


def test_the_figure_of_a_run_stands_in_its_directory(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"task": "cart-pole", "options": {"poles": 2}})
    for epoch in (1, 2):
        run.append(EpochRecord(epoch, [1.0, 0.5], [0.9 / epoch, float("nan")]), 0.1, {})
    labels = [Label(Variant(letter), 0) for letter in "RC"]
    path = loss_figure(run, labels)
    assert path == tmp_path / "run" / "losses.png"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ([5.1, 7.4], ["6", "7"]),
        ([0.02, 0.9], ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
    ],
)
def test_ticks_are_whole_epochs_and_plain_losses(losses, labels):
    figure, (axes,) = new_figure(6, 3.6)
    axes.plot([1, 4], losses)
    epochs_and_log(axes)
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    shown = [label.get_text() for place, label in ticks if low <= place <= high]
    assert shown == labels
    assert all(float(place).is_integer() for place in axes.get_xticks())


def test_a_single_epoch_has_a_whole_tick():
    figure, (axes,) = new_figure(6, 3.6)
    axes.plot([1], [0.5], marker="o")
    epochs_and_log(axes)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    assert [place for place in axes.get_xticks() if low <= place <= high] == [1.0]


def test_the_title_names_what_is_not_as_by_default():
    assert _title("swarm", {"drivers": 8, "evaders": 9, "dt": 0.2}) == "swarm (evaders 9, dt 0.2)"
    assert max(map(len, _title("swarm", dict.fromkeys(vars(SwarmOptions()), 7)).splitlines())) <= 80


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([0.5, 2.0], "log"), ([1.0, 0.0], "log"), ([1.0, -1e-7], "log"), ([np.nan], "log"),
     ([-4.6, -4.7], "linear"), ([-1.0, 2.0], "linear"), ([0.0, 0.0], "linear")],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_losses_below_zero_are_seen_on_a_linear_axis(losses, scale, tmp_path):
    figure, (axes,) = new_figure(3, 3)
    axes.plot(range(len(losses)), losses)
    epochs_and_log(axes)
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert all(low <= loss <= high for loss in losses if scale == "linear")
    save(figure, tmp_path / "a.png")

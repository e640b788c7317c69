"""Styles of gradients given as text, and their marks and colours in windows."""

import numpy as np
import pytest

from engine import Integrator
from training.viewing.canvas import fitted
from training.viewing.drawings import GuiCanvas, Scene, drawing_of
from training.viewing.palette import BLACK, BLUE, VERMILION, balance, styles_of
from training.viewing.profile import Profile
from training.viewing.scene import LARGE, Text

pytestmark = pytest.mark.float64

TEXTS = [
    "R", "M", "S", "N", "C", "clip-norm(R, 1)", "clip-norm(C, 1)", "decay(R, 0.5)", "decay(R, 0.9)", "truncate(R, 20)",
    "truncate(M, 20)", "paths(1, 0.5)", "paths(0.5, 1)", "agree(M, R)", "agree(S, R)", "config(M, R)",
    "C, clipping norm", "mine", "decay(agree(M, R), 0.9)", "config(agree(M, R), clip-norm(R, 1))",
]  # fmt: skip


def test_twenty_gradients_are_told_apart_without_colour():
    styles = styles_of(TEXTS)
    assert list(styles) == TEXTS
    assert len({(style.dashes, style.marker) for style in styles.values()}) == len(TEXTS)


def test_what_is_made_of_one_gradient_has_its_colour_and_others_have_none_of_these():
    styles = styles_of(TEXTS)
    for text, letter in (("decay(R, 0.9)", "R"), ("clip-norm(C, 1)", "C"), ("C, clipping norm", "C")):
        assert styles[text].rgb == styles[letter].rgb
        assert styles[text].dashes == styles[letter].dashes
        assert styles[text].marker
    letters = {styles[letter].rgb for letter in "RMSNC"}
    assert len(letters) == 5
    assert all(styles[text].rgb not in letters for text in ("agree(M, R)", "paths(1, 0.5)", "mine"))
    assert styles_of(reversed(TEXTS))["decay(R, 0.9)"].rgb == styles["R"].rgb


def test_profiles_in_windows_show_every_variant_by_name_and_unlike_the_others():
    same = np.ones((41, 2)) * np.linspace(1, 2, 41)[:, None]
    profile = Profile({text: same * (1 + index) for index, text in enumerate(TEXTS)}, drawing_of(Integrator(2)))
    scene = Scene()
    profile.draw(scene, 0, True)
    names = [part for part in scene.primitives if isinstance(part, Text) and "|adjoint| " in part.content]
    shown = sorted((part for part in names if "of a body" not in part.content), key=lambda part: -part.position[1])
    assert [part.content.split("   ")[0] for part in shown] == TEXTS
    heights = [part.position[1] for part in shown]
    assert min(heights) > 0.72  # above the curves
    assert len(set(heights)) == len(TEXTS)


@pytest.mark.parametrize("marker", ["o", "s", "^", "v", "D", "X", "P"])
def test_marks_are_painted_where_they_belong(marker):
    scene, canvas = Scene(), GuiCanvas("marks", size=100)
    scene.marks([(0.25, 0.75), (np.nan, 0.5)], marker, 0.2, VERMILION)
    canvas.paint([scene])
    rows, columns = np.nonzero((canvas.image() < 250).any(2))
    assert 15 <= np.ptp(rows) <= 30
    assert 15 <= np.ptp(columns) <= 30
    assert columns.mean() == pytest.approx(25, abs=2)
    assert rows.mean() == pytest.approx(25, abs=4)


def test_balance_runs_from_blue_over_pale_to_vermilion():
    found = balance(np.array([-2.0, -1.0, 0.0, 1.0, 9.0, np.nan]), 1.0)
    assert found[[0, 1, 3, 4]].tolist() == [BLUE, BLUE, VERMILION, VERMILION]
    assert found[2] == found[5]
    assert all((int(found[2]) >> shift) & 255 >= 0xF0 for shift in (16, 8, 0))


@pytest.mark.parametrize("size", [240, 300, 600])
def test_a_text_of_any_length_stays_in_its_line(size):
    """A text that does not fit is broken by the window, whose second line lies on the text below."""
    name = "every-step(clip-norm(decay-rate(R, 15), 0.1)), seed 5, epoch 100"
    for content in (name, name[:20], 3 * name, "W" * 5, ""):
        canvas = GuiCanvas("text", size=size)
        scene = Scene()
        scene.text(content, (0.02, 0.985), LARGE, BLACK)
        canvas.paint([scene])
        height = int(np.flatnonzero((canvas.image() < 128).any((1, 2))).max(initial=0))
        canvas.close()
        assert height < 0.015 * size + LARGE * size + 2
    assert fitted(name[:20], 15.0, 294.0) == (name[:20], 15)
    shown, font = fitted(3 * name, 15.0, 294.0)
    assert font == 10
    assert shown.startswith("every-step(")
    assert shown.endswith("epoch 100")
    assert ".." in shown

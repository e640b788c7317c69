"""Recording: the right pictures, the same for a seed, whole files or none."""

import hashlib
import itertools
import sys

import imageio.v2 as imageio
import numpy as np
import pytest

import evenflow
from engine import BackendError, SettingError
from training.tasks import TASKS
from training.viewing import Show, untrained, write_film
from training.viewing.film import frame_count, frames

pytestmark = pytest.mark.float64


def show(task="guidance", gradients=(), seed=0, speed=4.0, **options):
    return Show([untrained(TASKS[task](**{"horizon": 20, **options}))], gradients, seed, speed)


def pictures(directory):
    return [imageio.imread(path) for path in sorted(directory.glob("*.png"))]


def near(picture, colour):
    """How many pixels have about this colour."""
    return int((np.abs(picture.astype(int) - colour).max(2) < 60).sum())


def test_pictures_show_a_herd_that_moves_and_then_stands(tmp_path):
    seen = pictures(write_film(show(), tmp_path / "frames", 300))
    assert len(seen) == frame_count(show()) == 20 / 4 + 1 + 20
    assert all(picture.shape == (300, 300, 3) for picture in seen)
    for picture in seen:  # the two drivers, the target, white paper
        assert near(picture, (213, 94, 0)) > 20
        assert near(picture, (0, 158, 115)) > 20
        assert (picture == 255).all(2).mean() > 0.8
    changes = [int((one != other).any(2).sum()) for one, other in itertools.pairwise(seen)]
    assert min(changes[:5]) > 20
    assert changes[5:] == [0] * 20


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others():
    digests = [
        [hashlib.sha256(picture.tobytes()).hexdigest() for picture in frames(show(seed=seed), 160)]
        for seed in (3, 3, 4)
    ]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]


def test_the_adjoint_is_played_backwards_in_colours():
    of = show("guidance", ("R", "M"), speed=1.0)
    seen = list(frames(of, 300))
    assert of.player.ended
    assert seen[0].shape == (300, 900, 3)

    drivers = [(picture[40:, :600] == (213, 94, 0)).all(2).sum() for picture in seen]
    assert min(drivers[:20]) > 20  # in colours of their own
    assert max(drivers[21:40]) == 0  # in those of their adjoints
    # Without a controller M is R, and drawn over it.
    curve = [near(picture[90:210, 650:], (0, 114, 178)) for picture in seen]
    assert max(curve[:20]) == 0
    assert curve[40] > curve[30] > curve[22] > 0


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_a_film_can_be_read_back(name, tmp_path):
    out = write_film(show(), tmp_path / name, 160)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    film = imageio.mimread(out)
    first = next(frames(show(), 160)).astype(int)
    assert film[0].shape[:2] == (160, 160)
    assert np.abs(film[0][..., :3].astype(int) - first).mean() < 4
    assert np.abs(film[-1][..., :3].astype(int) - first).mean() > np.abs(film[0][..., :3].astype(int) - first).mean()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "film.gif").write_text("mine")
    for out in (tmp_path / "film.gif", tmp_path):
        with pytest.raises(SettingError, match="which exists"):
            write_film(show(), out)
    assert (tmp_path / "film.gif").read_text() == "mine"


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"FILE\.mp4, FILE\.gif or a directory"):
        write_film(show(), tmp_path / "film.avi")
    assert not any(tmp_path.iterdir())


def test_a_missing_encoder_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(BackendError, match="imageio-ffmpeg"):
        write_film(show(), tmp_path / "film.mp4")
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="can be written"):
        write_film(show(), tmp_path / "file" / "film.gif")


def test_without_a_display_the_view_becomes_a_recording(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)  # the session has its runtime
    for _ in range(2):
        assert evenflow.main(["view", "cart-pole", "--horizon", "4", "--size", "120"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cart-pole-seed-0-2.gif", "cart-pole-seed-0.gif"]
    assert "no display" in capsys.readouterr().out

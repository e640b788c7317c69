"""What does not move: marks at round places, so that one sees how large things are and how far they travel."""

import numpy as np

from training.viewing.palette import GREY, PALE
from training.viewing.scene import SMALL, Frame, Scene

_TILE = 0xF1F1F1


def net(scene: Scene, frame: Frame) -> None:
    """Pale lines at round places of the plane, with a bar that says how far apart they are."""
    spacing = round_length(frame.extent[0] / 4)
    (left, floor), (right, ceiling) = frame.world((0.0, 0.13)), frame.world((1.0, 0.85))
    if not np.isfinite([left, floor, right, ceiling]).all():
        return
    for axis, (low, high) in enumerate(((left, right), (floor, ceiling))):
        marks = spacing * np.arange(np.ceil(low / spacing), np.floor(high / spacing) + 1)
        begin = (
            np.stack([marks, np.full(len(marks), floor)], 1) if axis == 0 else np.stack([marks * 0 + left, marks], 1)
        )
        end = (
            np.stack([marks, np.full(len(marks), ceiling)], 1) if axis == 0 else np.stack([marks * 0 + right, marks], 1)
        )
        scene.lines(frame(begin), frame(end), 0.003, PALE)
    scale_bar(scene, frame, spacing)


def scale_bar(scene: Scene, frame: Frame, length: float | None = None) -> None:
    """A bar of a round length, at the upper right."""
    length = round_length(frame.extent[0] / 4) if length is None else length
    share = frame.length(length)
    ends = np.array([(0.97 - share, 0.86), (0.97, 0.86)])
    scene.lines(ends[:1], ends[1:], 0.008, GREY)
    half = np.array([0.0, 0.012])
    scene.lines(ends - half, ends + half, 0.008, GREY)
    scene.text(f"{length:g}", (0.97 - share, 0.915), SMALL, GREY)


def rail(scene: Scene, frame: Frame, height: float) -> None:
    """A rail along x at a height, on tiles of half a metre whose places are written under it in metres."""
    left, right = frame.world((0.0, 0.0))[0], frame.world((1.0, 0.0))[0]
    if not np.isfinite([left, right]).all():
        return
    thick = 0.012
    level = float(frame([(0.0, height)])[0, 1])
    tile = max(round_length(frame.extent[0] / 6), 0.25)
    for number in range(int(np.floor(left / tile)), int(np.ceil(right / tile))):
        x0, x1 = np.clip(frame([(number * tile, 0.0), ((number + 1) * tile, 0.0)])[:, 0], 0.0, 1.0)
        scene.rectangle((x0, level - 0.06), (x1, level), PALE if number % 2 else _TILE)
    marks = tile * np.arange(np.ceil(left / tile), np.floor(right / tile) + 1)
    places = frame(np.stack([marks, np.full(len(marks), height)], 1))
    scene.lines(places - (0.0, 0.06), places, 0.005, GREY)
    for mark, (x, _) in zip(marks, places, strict=True):
        if 0.0 < x < 0.85 and round(mark / tile) % 2 == 0:
            scene.text(f"{mark + 0.0:g} m", (x + 0.01, level - 0.015), SMALL, GREY)
    scene.lines([(0.0, level)], [(1.0, level)], thick, GREY)


def round_length(length: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above a length."""
    power = 10.0 ** np.floor(np.log10(max(length, 1e-30)))
    return float(power * next(step for step in (5, 2, 1) if step * power <= length * (1 + 1e-9)))

"""Where scenes are painted: a `ti.GUI` with a window or without one."""

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import taichi as ti

from engine.errors import BackendError
from training.viewing.palette import PALE, WHITE
from training.viewing.scene import Circles, Lines, Scene, Text, Triangles

_SMALLEST = 1.2  # pixels of a radius
_SMALLEST_FONT = 10  # pixels
_LETTER = 0.45  # width of a letter beside the size of the font, on average


class Canvas(Protocol):
    """Paints scenes into the panels of a grid, panel by panel from the upper left."""

    def paint(self, scenes: Sequence[Scene]) -> None: ...

    def image(self) -> np.ndarray:
        """What is painted: [height, width, 3], uint8, first row on top."""
        ...


class GuiCanvas:
    """A canvas on `ti.GUI`; without a window it needs neither display nor GPU.

    Args:
        title: of the window.
        panels: how many scenes are painted at a time.
        size: pixels of a panel's side.
        window: whether to open one; BackendError without a display.

    Attributes:
        gui: for its events.
        columns, rows: of the grid of panels.
    """

    def __init__(self, title: str, panels: int = 1, size: int = 600, window: bool = False):
        if window and not has_display():
            raise BackendError("Expected a display to open a window on, got none; record to a file with --record.")
        self.columns, self.rows = grid(panels)
        self.size = size
        resolution = (self.columns * size, self.rows * size)
        # Taichi's annotations say less than it takes.
        self.gui: Any = ti.GUI(title, resolution, background_color=WHITE, show_gui=window)  # type: ignore[arg-type]

    def paint(self, scenes: Sequence[Scene]) -> None:
        for index, scene in enumerate(scenes):
            corner = np.array([index % self.columns, self.rows - 1 - index // self.columns], dtype=float)
            for primitive in scene.primitives:
                self._paint(primitive, corner)
        self._separate(len(scenes))

    def image(self) -> np.ndarray:
        pixels = np.clip(self.gui.get_image()[:, ::-1, :3], 0.0, 1.0)
        return np.ascontiguousarray((pixels * 255.0 + 0.5).astype(np.uint8).swapaxes(0, 1))

    def clear(self) -> None:
        self.gui.clear(WHITE)

    def close(self) -> None:
        self.gui.close()

    def panel_at(self, position: tuple[float, float]) -> tuple[int, tuple[float, float]]:
        """(panel, place in its unit square) of a place in the window's unit square."""
        x, y = position[0] * self.columns, position[1] * self.rows
        column, row = min(max(int(x), 0), self.columns - 1), min(max(int(y), 0), self.rows - 1)
        return (self.rows - 1 - row) * self.columns + column, (x - column, y - row)

    def _paint(self, primitive, corner: np.ndarray) -> None:
        place = lambda points: _finite((points + corner) / (self.columns, self.rows))  # noqa: E731
        match primitive:
            case Circles(centres, radius, colour):
                if len(centres):
                    self.gui.circles(place(centres), radius=np.maximum(radius * self.size, _SMALLEST), color=colour)
            case Lines(begin, end, width, colour):
                if len(begin):
                    self.gui.lines(place(begin), place(end), radius=max(0.5 * width * self.size, 0.6), color=colour)
            case Triangles(a, b, c, colour):
                self.gui.triangles(place(a), place(b), place(c), color=colour)
            case Text(content, position, size, colour):
                x, y = place(np.array([position]))[0]
                content, font = fitted(content, size * self.size, (1.0 - position[0]) * self.size)
                self.gui.text(content, (x, y), font_size=font, color=colour)

    def _separate(self, panels: int) -> None:
        for column in range(1, min(self.columns, panels)):
            self.gui.line((column / self.columns, 0.0), (column / self.columns, 1.0), radius=1, color=PALE)
        for row in range(1, self.rows):
            self.gui.line((0.0, row / self.rows), (1.0, row / self.rows), radius=1, color=PALE)


def fitted(content: str, font: float, room: float) -> tuple[str, int]:
    """A text and its font's size, as large as `font` pixels where a line of `room` pixels holds it.

    Else smaller, and where that is not enough without its middle: the window would break it into the line below.
    """
    font = max(min(font, room / (_LETTER * max(len(content), 1))), _SMALLEST_FONT)
    most = max(int(room / (_LETTER * font)), 3)
    if len(content) > most:
        tail = (most - 2) // 2
        content = f"{content[: most - 2 - tail]}..{content[len(content) - tail :]}"
    return content, round(font)


def grid(panels: int) -> tuple[int, int]:
    """(columns, rows) for some panels: up to three in one row, then two rows."""
    rows = 1 if panels <= 3 else 2
    return -(-panels // rows), rows


def has_display() -> bool:
    """Whether a window can be opened: elsewhere than on X11, assumed; there, tried."""
    if not sys.platform.startswith("linux"):
        return True
    library = ctypes.util.find_library("X11")
    if not os.environ.get("DISPLAY") or library is None:
        return False
    x11 = ctypes.CDLL(library)
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = x11.XOpenDisplay(None)
    if display:
        x11.XCloseDisplay(ctypes.c_void_p(display))
    return bool(display)


def _finite(points: np.ndarray) -> np.ndarray:
    """Places that the canvas can take: what is far outside or not finite is put outside nearby."""
    return np.clip(np.nan_to_num(points, nan=-2.0, posinf=3.0, neginf=-2.0), -2.0, 3.0)

"""The window for what is in three dimensions: `ti.ui.Window`, which needs Vulkan."""

import numpy as np
import taichi as ti

from training.viewing.drawings import Solid
from training.viewing.show import Show
from training.viewing.window import FRAMES_PER_SECOND

_KEY_LINES = (
    "space pause   left/right step   up/down speed   r restart",
    "a/s seed   p/n checkpoint   drag: turn   q quit",
)
_NAMES = {ti.ui.SPACE: "space", ti.ui.LEFT: "Left", ti.ui.RIGHT: "Right", ti.ui.UP: "Up", ti.ui.DOWN: "Down"}
_BACKGROUND, _LINES = (1.0, 1.0, 1.0), (0.3, 0.3, 0.3)
_NOWHERE = 1e6  # where nobody looks
_LOOKS = 9  # moments that say how much space a rollout takes
_TITLE_PIXELS, _LINE_PIXELS, _BOARD_PIXELS = 30, 18, 520
# How far a drag across the window turns the camera, radians.
_TURN = 4.0


class SpaceWindow:
    """A window on a show in three dimensions, its pictures side by side; the mouse turns the camera.

    Args:
        show: with `solids`.
        size: pixels of a side.
    """

    def __init__(self, show: Show, size: int = 600):
        self.show = show
        self._columns = len(show.solids())
        resolution = (min(self._columns, 3) * size, size)
        self.window = ti.ui.Window(show.title, resolution, vsync=True, fps_limit=FRAMES_PER_SECOND)
        self.azimuth, self.elevation = np.deg2rad(-65.0), np.deg2rad(25.0)
        self._cursor: tuple[float, float] | None = None
        self._fields: dict[tuple[int, str, int], ti.MatrixField | ti.ScalarField] = {}
        low, high = self._bounds()
        self._centre, self._extent = (low + high) / 2, max(float((high - low).max()), 1e-3)

    def run(self) -> None:
        while self.window.running:
            for event in self.window.get_events(ti.ui.PRESS):
                self.press(event.key)
            self._turn()
            self.paint()
            self.window.show()
            self.show.player.advance(1 / FRAMES_PER_SECOND)
        self.window.destroy()

    def press(self, key: str) -> None:
        if key in ("q", ti.ui.ESCAPE):
            self.window.running = False
        else:
            self.show.press(_NAMES.get(key, key))

    def paint(self) -> None:
        canvas, scene, camera = self.window.get_canvas(), self.window.get_scene(), ti.ui.Camera()
        canvas.set_background_color(_BACKGROUND)
        towards = np.array(
            [
                np.cos(self.elevation) * np.cos(self.azimuth),
                np.cos(self.elevation) * np.sin(self.azimuth),
                np.sin(self.elevation),
            ]
        )
        across = np.array([-np.sin(self.azimuth), np.cos(self.azimuth), 0.0])
        camera.position(*(self._centre + 1.6 * self._columns**0.5 * self._extent * towards))
        camera.lookat(*self._centre)
        camera.up(0.0, 0.0, 1.0)
        scene.set_camera(camera)
        scene.ambient_light((0.7, 0.7, 0.7))
        scene.point_light(tuple(self._centre + 4.0 * self._extent * (towards + across)), (0.6, 0.6, 0.6))
        solids = self.show.solids()
        for column, solid in enumerate(solids):
            shift = (column - (len(solids) - 1) / 2) * 1.1 * self._extent * across
            self._add(scene, column, solid.moved(shift))
        canvas.scene(scene)
        lines = [*self.show.captions(), *_KEY_LINES]
        width, height = self.window.get_window_shape()
        high = (_TITLE_PIXELS + _LINE_PIXELS * len(lines)) / height
        with self.window.get_gui().sub_window(
            self.show.title, 0.01, 0.01, min(0.98, _BOARD_PIXELS / width), high
        ) as board:
            for line in lines:
                board.text(line)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners of a box around what there is to see, from start to end, [3] each."""
        horizon = self.show.player.horizon
        moments = np.unique(np.linspace(0, horizon, _LOOKS).round().astype(int))
        solids = [solid for t in moments for solid in self.show.solids(int(t))]
        points = np.concatenate([part for solid in solids for part in (solid.points, solid.lines.reshape(-1, 3))])
        points = points[np.isfinite(points).all(1)]
        return (points.min(0), points.max(0)) if len(points) else (np.zeros(3), np.ones(3))

    def _turn(self) -> None:
        """Follow the mouse while its left button is down."""
        here = self.window.get_cursor_pos()
        held = self.window.is_pressed(ti.ui.LMB)
        if held and self._cursor is not None:
            self.azimuth -= _TURN * (here[0] - self._cursor[0])
            self.elevation = float(np.clip(self.elevation - _TURN * (here[1] - self._cursor[1]), -1.5, 1.5))
        self._cursor = here if held else None

    def _add(self, scene, column: int, solid: Solid) -> None:
        colours = np.stack([(solid.colours >> place) & 255 for place in (16, 8, 0)], axis=1) / 255.0
        # What is not finite stays in, far away, since fields keep their size.
        points = np.where(np.isfinite(solid.points), solid.points, _NOWHERE)
        scene.particles(
            self._field(column, "points", points),
            radius=float(solid.radii.max()),
            per_vertex_color=self._field(column, "colours", colours),
            per_vertex_radius=self._field(column, "radii", solid.radii),
        )
        if len(solid.lines):
            ends = np.nan_to_num(solid.lines, nan=_NOWHERE).reshape(-1, 3)
            scene.lines(self._field(column, "lines", ends), width=2.0, color=_LINES)

    def _field(self, column: int, name: str, values: np.ndarray):
        """A field with these values, made once for each column, name and length: what is painted belongs to a field."""
        key = (column, name, len(values))
        if key not in self._fields:
            vector = values.ndim == 2
            self._fields[key] = (
                ti.Vector.field(values.shape[1], ti.f32, len(values)) if vector else ti.field(ti.f32, len(values))
            )
        field = self._fields[key]
        field.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return field

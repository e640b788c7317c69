"""The window: it feeds events to the show and paints it, sixty times a second."""

import taichi as ti

from training.viewing.drawings import GuiCanvas, Scene
from training.viewing.palette import VERMILION
from training.viewing.show import Show

FRAMES_PER_SECOND = 60
_NAMES = {ti.GUI.SPACE: "space"}
_QUIT = ("q", ti.GUI.ESCAPE, ti.GUI.EXIT)


class Window:
    """A window on a show, open until it is closed or q is pressed; BackendError without a display."""

    def __init__(self, show: Show, size: int = 600):
        self.show = show
        self._canvas = GuiCanvas(show.title, show.panels, size, window=True)
        self._canvas.gui.fps_limit = FRAMES_PER_SECOND
        self._held: tuple[int, tuple[float, float]] | None = None

    def run(self) -> None:
        gui = self._canvas.gui
        while gui.running:
            for event in gui.get_events():
                self._handle(event)
            scenes = self.show.scenes()
            self.show.add_keys(scenes[0])
            self._draw_drag(scenes)
            self._canvas.paint(scenes)
            gui.show()
            self.show.player.advance(1 / FRAMES_PER_SECOND)
        self._canvas.close()

    def _handle(self, event) -> None:
        pressed = event.type == ti.GUI.PRESS
        if event.key in _QUIT:
            self._canvas.gui.running = False
        elif event.key == ti.GUI.LMB:
            self._drag(event.pos, pressed)
        elif event.key == ti.GUI.RMB and pressed:
            self.show.aim(self._canvas.panel_at(event.pos)[1])
        elif pressed:
            self.show.press(_NAMES.get(event.key, event.key))

    def _drag(self, position: tuple[float, float], pressed: bool) -> None:
        panel, place = self._canvas.panel_at(position)
        if pressed:
            self._held = panel, place
        elif self._held is not None:
            held, start = self._held
            self._held = None
            if held == panel and start != place:
                self.show.push(panel, start, place)

    def _draw_drag(self, scenes: list[Scene]) -> None:
        panel, place = self._canvas.panel_at(self._canvas.gui.get_cursor_pos())
        if self._held is not None and self._held[0] == panel:
            scenes[panel].arrows([self._held[1]], [place], 0.008, VERMILION)

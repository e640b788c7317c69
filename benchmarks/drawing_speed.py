"""How many pictures a second the drawing makes without physics: `python -m benchmarks.drawing_speed`."""

import time

import numpy as np

from engine import init
from engine.systems import Guidance
from training.viewing.drawings import GuiCanvas, Moment, Scene, drawing_of, has_display


def frames_per_second(particles: int = 10_000, frames: int = 300, size: int = 600) -> float:
    """Pictures a second of a herd of particles that jump about; in a window where there is a display.

    Args:
        particles: ten of them drivers.
        frames: how many are timed.
        size: pixels of the side.
    """
    system = Guidance(10, particles - 10)
    states = np.random.default_rng(0).normal(size=(16, 4, particles))
    controls = np.ones((16, 2, 10))
    drawing, window = drawing_of(system, np.zeros(2)), has_display()
    (camera,), fastest = drawing.cameras([states]), drawing.fastest([states])
    canvas = GuiCanvas("drawing speed", 1, size, window=window)
    canvas.gui.fps_limit = None

    def show(count: int) -> None:
        scene = Scene()
        drawing.draw(scene, camera(count % 16), Moment(states, controls, count % 16, None, fastest))
        canvas.paint([scene])
        if window:
            canvas.gui.show()
        else:
            canvas.image()
            canvas.clear()

    for count in range(10):
        show(count)
    started = time.perf_counter()
    for count in range(frames):
        show(count)
    return frames / (time.perf_counter() - started)


if __name__ == "__main__":
    init("cpu")
    where = "in a window" if has_display() else "without a window"
    print(f"10,000 particles, 600 x 600 pixels, {where}: {frames_per_second():.0f} frames a second")

"""Real windows, in the plane and in space: keys that X sends them, and pictures of the screen."""

import ctypes
import ctypes.util
import os
import sys
import time

import numpy as np
import pytest
from children import HANGS, Child

from engine import available_backends
from engine.start import NEEDS


class Screen:
    """The X display, to press keys on a window and to take its picture."""

    def __init__(self):
        self.x11 = ctypes.CDLL(ctypes.util.find_library("X11"))
        self.x11.XOpenDisplay.restype = ctypes.c_void_p
        self.x11.XDefaultRootWindow.restype = ctypes.c_ulong
        self.x11.XStringToKeysym.restype = ctypes.c_ulong
        self.display = ctypes.c_void_p(self.x11.XOpenDisplay(None))
        self.root = self.x11.XDefaultRootWindow(self.display)

    def windows(self):
        """Ids of the windows on the screen."""
        root, parent, count = ctypes.c_ulong(), ctypes.c_ulong(), ctypes.c_uint()
        children = ctypes.POINTER(ctypes.c_ulong)()
        self.x11.XQueryTree(
            self.display, ctypes.c_ulong(self.root), *map(ctypes.byref, (root, parent, children, count))
        )
        return [children[index] for index in range(count.value)]

    def press(self, window, key):
        """Press and release a key, named as X names it, on a window."""
        code = self.x11.XKeysymToKeycode(self.display, ctypes.c_ulong(self.x11.XStringToKeysym(key.encode())))
        for kind, mask in ((2, 1), (3, 2)):  # KeyPress, KeyRelease
            event = (ctypes.c_long * 24)()
            fields = {0: kind, 3: self.display.value, 4: window, 5: self.root, 7: 0}
            for index, value in fields.items():
                event[index] = value
            words = ctypes.cast(event, ctypes.POINTER(ctypes.c_uint))
            words[20], words[21] = 0, code  # state, keycode of XKeyEvent on 64-bit machines
            self.x11.XSendEvent(self.display, ctypes.c_ulong(window), 0, ctypes.c_long(mask), ctypes.byref(event))
        self.x11.XFlush(self.display)

    def picture(self):
        from PIL import ImageGrab

        return np.asarray(ImageGrab.grab(xdisplay=os.environ["DISPLAY"]))[..., :3].astype(int)


def settled(screen, condition, seconds=HANGS):
    """The first picture of the screen that meets a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        picture = screen.picture()
        if condition(picture):
            return picture
        time.sleep(0.1)
    raise AssertionError("the screen did not become as expected")


in_space = pytest.mark.skipif("vulkan" not in available_backends(), reason=f"needs {NEEDS['vulkan']}")


@pytest.mark.window
@pytest.mark.float64
@pytest.mark.parametrize(
    ("task", "is_driver", "fewest"),
    [
        (("guidance",), lambda picture: (picture == (213, 94, 0)).all(2), 100),
        # The same vermilion, shaded, on two small spheres.
        pytest.param(
            ("n-body", "--dim", "3"),
            lambda picture: (picture[..., 0] > 120) & (picture[..., 1] < 130) & (picture[..., 2] < 40),
            50,
            marks=in_space,
        ),
    ],
    ids=("plane", "space"),
)
def test_a_window_moves_pauses_steps_restarts_and_closes(task, is_driver, fewest):
    screen = Screen()
    before = set(screen.windows())
    command = [sys.executable, "-m", "evenflow", "view", *task, "--window", "--speed", "0.25", "--size", "400"]
    with Child(command) as process:
        try:
            first = settled(screen, lambda picture: is_driver(picture).sum() > fewest, seconds=60)
            press = lambda key: [screen.press(window, key) for window in set(screen.windows()) - before]  # noqa: E731
            changed = lambda one, other: int((one != other).any(2).sum())  # noqa: E731
            settled(screen, lambda picture: changed(picture, first) > 100)  # it moves

            press("space")
            time.sleep(0.5)
            paused = screen.picture()
            time.sleep(0.5)
            assert changed(screen.picture(), paused) == 0

            press("Right")
            stepped = settled(screen, lambda picture: changed(picture, paused) > 20)
            press("r")
            start = settled(screen, lambda picture: changed(picture, stepped) > 20)
            press("Right")
            settled(screen, lambda picture: changed(picture, start) > 20)
            press("Left")
            settled(screen, lambda picture: changed(picture, start) == 0)  # frame 0 again

            press("s")
            other = settled(screen, lambda picture: changed(picture, start) > 200)
            assert (is_driver(other) != is_driver(start)).sum() > fewest
            press("a")
            settled(screen, lambda picture: changed(picture, start) == 0)

            press("q")
            assert process.wait(timeout=HANGS) == 0
        finally:
            process.kill()

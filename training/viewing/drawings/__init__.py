"""Drawings of systems: states in, circles, lines and arrows out, painted with or without a window."""

from training.viewing.canvas import Canvas, GuiCanvas, has_display
from training.viewing.drawings.camera import Camera
from training.viewing.drawings.drawing import Drawing, Moment, Solid
from training.viewing.drawings.table import DRAWINGS, drawing_of, register_drawing
from training.viewing.palette import shades
from training.viewing.scene import Frame, Scene

__all__ = [
    "DRAWINGS",
    "Camera",
    "Canvas",
    "Drawing",
    "Frame",
    "GuiCanvas",
    "Moment",
    "Scene",
    "Solid",
    "drawing_of",
    "has_display",
    "register_drawing",
    "shades",
]

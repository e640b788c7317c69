"""Drawings of systems: states in, circles, lines and arrows out, painted with or without a window."""

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.drawing.bodies import BodiesDrawing
from engine.drawing.camera import Camera
from engine.drawing.canvas import Canvas, GuiCanvas, has_display
from engine.drawing.carts import CartDrawing
from engine.drawing.drawing import Drawing, Moment, Solid, StatePlot
from engine.drawing.herd import HerdDrawing
from engine.drawing.scene import Frame, Scene, shades
from engine.drawing.tank import TankDrawing
from engine.drawing.wave import WaveDrawing
from engine.system import System
from engine.systems import CartPendulum, CartPole, Fluid, Guidance, Held
from engine.systems.n_body import NBody
from engine.systems.quantum import QuantumBox
from engine.systems.swarm import Swarm

DRAWINGS: dict[type[System], Callable[[Any, Any], Drawing]] = {
    CartPole: CartDrawing,
    CartPendulum: CartDrawing,
    Fluid: TankDrawing,
    Guidance: HerdDrawing,
    Swarm: HerdDrawing,
    NBody: BodiesDrawing,
    QuantumBox: WaveDrawing,
}


def drawing_of(system: System, goal: np.ndarray | None = None) -> Drawing:
    """The drawing of this system; a plot of its state over time if it has none of its own.

    Args:
        goal: where the system should be: a point for a herd, a wave [N] for a particle in a box, values for a plot.
    """
    while isinstance(system, Held):
        system = system.system
    return DRAWINGS.get(type(system), StatePlot)(system, goal)


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
    "shades",
]

"""Drawings of systems: states in, circles, lines and arrows out, painted with or without a window."""

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.system import System
from engine.systems import CartPendulum, CartPole, Fluid, Guidance, Held
from engine.systems.n_body import NBody
from engine.systems.quantum import QuantumBox
from engine.systems.swarm import Swarm
from training.viewing.canvas import Canvas, GuiCanvas, has_display
from training.viewing.drawings.bodies import BodiesDrawing
from training.viewing.drawings.camera import Camera
from training.viewing.drawings.carts import CartDrawing
from training.viewing.drawings.drawing import Drawing, Moment, Solid, StatePlot
from training.viewing.drawings.herd import HerdDrawing
from training.viewing.drawings.tank import TankDrawing
from training.viewing.drawings.wave import WaveDrawing
from training.viewing.scene import Frame, Scene, shades

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

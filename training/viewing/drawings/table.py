"""Which drawing belongs to which system."""

import re
from collections.abc import Callable

import numpy as np

from engine import SettingError, System
from engine.registry import SHIPPED, Registry, registering
from engine.systems import BallWall, CartPendulum, CartPole, Fluid, Guidance, Held
from engine.systems.hopper import Hopper
from engine.systems.kuramoto_sivashinsky import KuramotoSivashinsky
from engine.systems.n_body import NBody
from engine.systems.quantum import QuantumBox
from training.viewing.drawings.ball import BallDrawing
from training.viewing.drawings.bodies import BodiesDrawing
from training.viewing.drawings.carts import CartDrawing
from training.viewing.drawings.drawing import Drawing, StatePlot
from training.viewing.drawings.herd import HerdDrawing
from training.viewing.drawings.hopper import HopperDrawing
from training.viewing.drawings.ring import RingDrawing
from training.viewing.drawings.tank import TankDrawing
from training.viewing.drawings.wave import WaveDrawing

MakeDrawing = Callable[..., Drawing]
"""`draw(system, goal)`: a system and where it should be, an array or None."""

DRAWINGS: Registry[tuple[type[System], MakeDrawing]] = Registry("drawing")


def register_drawing(system: type[System], draw: MakeDrawing) -> None:
    """Draw systems of a class, and of classes derived from it, in windows and films.

    Args:
        system: the class.
        draw: a class derived from `Drawing`, or a function that returns one: called with the system and with the goal
            of its objective, an array or None.

    Raises:
        SettingError: no class of systems, nothing that can be called, or a class that is drawn already.
    """
    if not (isinstance(system, type) and issubclass(system, System)):
        raise SettingError(f"Expected a class of systems to draw, derived from System, got {system!r}.")
    if not callable(draw):
        raise SettingError(f"Expected a drawing of {system.__name__} as a class or a function, got {draw!r}.")
    name = _key(system)
    if name in DRAWINGS and not DRAWINGS.replaces(name, name):
        raise SettingError(
            f"Expected a class of systems that nobody draws, got {system.__name__}, which {DRAWINGS.origin(name)} "
            "draws; derive a class from it."
        )
    DRAWINGS.register(name, (system, draw))


def drawing_of(system: System, goal: np.ndarray | None = None) -> Drawing:
    """The drawing of this system or of the nearest class that it derives from; else a plot of its state over time.

    Args:
        goal: where the system should be: a point for a herd, a wave [N] for a particle in a box, values for a plot.
    """
    while isinstance(system, Held):
        system = system.system
    drawn = dict(DRAWINGS.values())
    draw = next((drawn[kind] for kind in type(system).__mro__ if kind in drawn), StatePlot)
    return draw(system, goal)


def _key(system: type[System]) -> str:
    """A name for a class that no class of another module has."""
    return re.sub("[^A-Za-z0-9]+", "-", f"{system.__qualname__} of {system.__module__}").strip("-")


with registering(SHIPPED):
    for one, its_drawing in (
        (BallWall, BallDrawing),
        (CartPole, CartDrawing),
        (CartPendulum, CartDrawing),
        (Fluid, TankDrawing),
        (Guidance, HerdDrawing),
        (Hopper, HopperDrawing),
        (KuramotoSivashinsky, RingDrawing),
        (NBody, BodiesDrawing),
        (QuantumBox, WaveDrawing),
    ):
        register_drawing(one, its_drawing)

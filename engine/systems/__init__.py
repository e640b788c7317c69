"""The physical systems that ship, one file each."""

import inspect
from collections.abc import Callable

from engine.errors import SettingError
from engine.held import Held
from engine.registry import SHIPPED, Registry, registering
from engine.system import System
from engine.systems.ball_wall import BallWall
from engine.systems.cart_pendulum import CartPendulum
from engine.systems.cart_pole import CartPole
from engine.systems.fluid import Fluid
from engine.systems.guidance import Guidance
from engine.systems.hopper import Hopper
from engine.systems.integrator import Integrator
from engine.systems.kuramoto_sivashinsky import KuramotoSivashinsky
from engine.systems.linear import LinearSystem
from engine.systems.n_body import NBody
from engine.systems.quantum import QuantumBox
from engine.systems.swarm import Swarm

SYSTEMS: Registry[Callable[[], System]] = Registry("system")
"""For each, what makes a small instance, on which `evenflow check` checks it."""


def register_system(name: str, make: Callable[[], System]) -> None:
    """Offer a system to `evenflow check` and `evenflow list`, under a name; a task holds a system of its own.

    Args:
        name: of letters, digits and hyphens.
        make: `make()` builds a small instance; it may need the runtime. States and controls between -1/2 and 1/2 have
            to be ones at which it is smooth.

    Raises:
        SettingError: a name that is taken, or what cannot be called without arguments.
    """
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"Expected what makes system {name!r} to be called without arguments, got {make!r}."
        ) from error
    SYSTEMS.register(name, make)


with registering(SHIPPED):
    register_system("ball-wall", BallWall)
    register_system("cart-pendulum", CartPendulum)
    register_system("cart-pole", CartPole)
    register_system("fluid", lambda: Fluid(particles=50, jets=2, size=(2.0, 1.0), spacing=0.1))
    register_system("guidance", Guidance)
    register_system("hopper", Hopper)
    register_system("integrator", Integrator)
    register_system("kuramoto-sivashinsky", KuramotoSivashinsky)
    register_system("linear", lambda: LinearSystem(((1.0, 0.1), (-0.02, 0.97)), ((0.0,), (0.1,))))
    register_system("n-body", NBody)
    register_system("quantum", QuantumBox)
    register_system("swarm", lambda: Swarm(drivers=2, evaders=50))

__all__ = [
    "SYSTEMS",
    "BallWall",
    "CartPendulum",
    "CartPole",
    "Fluid",
    "Guidance",
    "Held",
    "Hopper",
    "Integrator",
    "KuramotoSivashinsky",
    "LinearSystem",
    "NBody",
    "QuantumBox",
    "Swarm",
    "register_system",
]

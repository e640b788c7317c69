"""The physical systems that ship, one file each."""

from engine.systems.cart_pole import CartPole
from engine.systems.integrator import Integrator
from engine.systems.linear import LinearSystem

SYSTEMS = {"cart-pole": CartPole, "integrator": Integrator, "linear": LinearSystem}

__all__ = ["SYSTEMS", "CartPole", "Integrator", "LinearSystem"]

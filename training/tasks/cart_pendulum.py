"""Swinging up a chain of links on a cart."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from engine.systems import CartPendulum
from training.task import Task
from training.tasks.cart_pole import CartPoleOptions


@dataclass(frozen=True)
class CartPendulumOptions:
    """Swing up a chain of links, the first hinged on a cart, by a force on the cart."""

    difficulty: ClassVar[tuple[str, tuple[Any, ...]]] = ("links", (1, 2, 3, 4))

    links: int = 2
    """Number of links in the chain, 1 to 4."""
    horizon: int = 100
    """Steps."""
    dt: float = 0.01
    """Time step in seconds."""

    def build(self) -> Task:
        system = CartPendulum(self.links, self.dt)
        # Initial states, loss and policy are those of as many poles beside each other: x, ẋ, angles, rates.
        poles = CartPoleOptions(self.links, self.horizon, self.dt).build()
        return replace(poles, name="cart-pendulum", system=system)

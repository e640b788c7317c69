"""Carts: poles beside each other, or rods in a chain."""

import numpy as np

from engine.systems import CartPendulum, CartPole
from engine.systems.cart_pole import CartPoleParameters
from training.viewing.drawings.camera import following
from training.viewing.drawings.drawing import Drawing, Moment, largest
from training.viewing.drawings.ground import rail
from training.viewing.palette import BLACK, CYCLE, GREY, VERMILION
from training.viewing.scene import MEDIUM, Frame, Scene

_ROD = 2 * CartPoleParameters().half_length
_CART = (0.5, 0.24)
# A rod is not shorter than a third of a picture in which the cart's whole way is seen; longer ways are followed.
_WIDEST = 3.0
# What rods may fill of the height: below it nothing, above it who and when.
_FLOOR, _CEILING = 0.04, 0.83
# Velocity that a drag over 1 m gives, per second.
_PUSH = 5.0


class CartDrawing(Drawing):
    """A cart on its rail, its rods, and the force on it as an arrow. Bodies: the cart, then the rods.

    State [2 + 2n]: x, ẋ, angles from the upward vertical, their rates. Pushing the cart changes ẋ; pushing a rod,
    at its end, changes its rate by the part of the drag across it.

    Args:
        chained: whether each rod hangs from the one before instead of from the cart.
    """

    def __init__(self, system: CartPole | CartPendulum, goal: None = None):
        self.rods = (system.state_shape[0] - 2) // 2
        self.chained = isinstance(system, CartPendulum)

    def hinges(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(begin, end) of every rod [rods, 2] in metres."""
        angles = state[2 : 2 + self.rods]
        reach = _ROD * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        base = np.array([[state[0], 0.0]])
        if not self.chained:
            return np.repeat(base, self.rods, axis=0), base + reach
        ends = base + np.cumsum(reach, axis=0)
        return np.concatenate([base, ends[:-1]]), ends

    def frame(self, states):
        left, right = np.min(_finite(states[:, 0])), np.max(_finite(states[:, 0]))
        return self._around((left + right) / 2, max(right - left + 2 * self._reach, self._side))

    def cameras(self, episodes):
        whole = self.frame(np.concatenate(episodes))
        if whole.extent[0] <= max(self._side, _WIDEST * self._reach):
            return [lambda t: whole] * len(episodes)
        places = [following(episode[:, 0], self._side / 2 - self._reach) for episode in episodes]
        return [lambda t, x=x: self._around(float(x[t]), self._side) for x in places]

    @property
    def _reach(self) -> float:
        """How far from the cart's middle anything may be, in metres."""
        return 0.06 + _ROD * (self.rods if self.chained else 1)

    @property
    def _side(self) -> float:
        """Metres of a picture that rods fill when they stand and when they hang."""
        return 2 * self._reach / (_CEILING - _FLOOR)

    def _around(self, x: float, side: float) -> Frame:
        return Frame((x, (0.5 - (_FLOOR + _CEILING) / 2) * side), (side, side))

    def draw(self, scene, frame, moment):
        rail(scene, frame, -_CART[1] / 2)
        x = moment.state[0]
        if not np.isfinite(moment.state).all():
            scene.text("the state is not finite", (0.2, 0.6), MEDIUM, VERMILION)
            return
        shades = moment.shades
        cart, bodies = (GREY, None) if shades is None else (int(shades[0]), shades[1:])
        width, height = _CART[0] / 2, _CART[1] / 2
        low, high = frame([(x - width, -height), (x + width, height)])
        scene.rectangle(low, high, cart)
        begin, end = self.hinges(moment.state)
        own = np.array([CYCLE[index % len(CYCLE)] for index in range(self.rods)], dtype=np.uint32)
        thickness = max(frame.length(0.06), 0.016)
        scene.lines(frame(begin), frame(end), thickness, own if bodies is None else bodies)
        scene.circles(frame(end), 0.8 * thickness, own if bodies is None else bodies)
        scene.circles(frame(begin), 0.5 * thickness, BLACK)
        self._force(scene, frame, moment)

    def sizes(self, adjoints):
        n = self.rods
        cart = np.hypot(adjoints[:, :1], adjoints[:, 1:2])
        return np.concatenate([cart, np.hypot(adjoints[:, 2 : 2 + n], adjoints[:, 2 + n :])], axis=1)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        _, ends = self.hinges(pushed)
        distances = np.linalg.norm(np.vstack([[pushed[0], 0.0], ends]) - start, axis=1)
        nearest = int(distances.argmin())
        if nearest == 0:
            pushed[1] += _PUSH * drag[0]
        else:
            angle = pushed[1 + nearest]
            pushed[1 + self.rods + nearest] += _PUSH * (np.cos(angle) * drag[0] - np.sin(angle) * drag[1]) / _ROD
        return pushed

    def _force(self, scene: Scene, frame: Frame, moment: Moment) -> None:
        """F as an arrow that starts at the side it points to, a quarter of the picture long at its largest."""
        if moment.control is None:
            return
        force = float(moment.control[0])
        side = np.copysign(_CART[0] / 2, force)
        begin = frame([(moment.state[0] + side, 0.0)])
        scene.arrows(begin, begin + np.array([0.25 * force / largest(moment.controls), 0.0]), 0.016, BLACK)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)

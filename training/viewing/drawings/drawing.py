"""The contract of a drawing, and the one for systems without their own: state components over time."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.system import System
from training.viewing.drawings.camera import Camera
from training.viewing.palette import BLACK, CYCLE, GREY, PALE
from training.viewing.scene import SMALL, Frame, Scene


@dataclass(frozen=True)
class Moment:
    """One sample's rollout, seen at one step.

    Attributes:
        states: [T+1, *state_shape]; controls: [T, *control_shape].
        t: the step, 0 to T.
        shades: a colour for each body, 0xRRGGBB, in place of its own; None for its own.
        fastest: the speed that the brightest colour stands for, as `Drawing.fastest` finds it for all that is shown;
            None for the largest at this step.
    """

    states: np.ndarray
    controls: np.ndarray
    t: int
    shades: np.ndarray | None = None
    fastest: float | None = None

    @property
    def state(self) -> np.ndarray:
        return self.states[self.t]

    @property
    def control(self) -> np.ndarray | None:
        """What acts on the state; None at the last step."""
        return self.controls[self.t] if self.t < len(self.controls) else None


@dataclass(frozen=True)
class Solid:
    """What is in three dimensions at one step, z upwards.

    Attributes:
        points: [n, 3]; radii: [n], in the world's lengths; colours: [n], 0xRRGGBB; of the bodies.
        lines: [m, 2, 3], begin and end: of walls, goals and control.
    """

    points: np.ndarray
    radii: np.ndarray
    colours: np.ndarray
    lines: np.ndarray

    def moved(self, shift: np.ndarray) -> "Solid":
        """The same at another place."""
        return Solid(self.points + shift, self.radii, self.colours, self.lines + shift)


class Drawing(abc.ABC):
    """Turns the states of one system into primitives. World coordinates are the drawing's own."""

    @abc.abstractmethod
    def frame(self, states: np.ndarray) -> Frame:
        """A frame that holds everything drawn for states [n, *state_shape]."""

    def cameras(self, episodes: Sequence[np.ndarray]) -> list[Camera]:
        """How rollouts [T+1, *state_shape] that are shown beside each other are seen at each step, to one scale.

        Every body is inside at every step. By default one still frame serves all.
        """
        frame = self.frame(np.concatenate(episodes))
        return [lambda t: frame for _ in episodes]

    def stills(self, shown: Sequence[tuple[np.ndarray, int]]) -> list[Frame]:
        """How single steps, each of a rollout [T+1, *state_shape], are seen beside each other, to one scale."""
        return [camera(0) for camera in self.cameras([states[t : t + 1] for states, t in shown])]

    def fastest(self, episodes: Sequence[np.ndarray]) -> float | None:
        """The speed that the brightest colour stands for in all of these rollouts; None if colours mean none."""
        return None

    @abc.abstractmethod
    def draw(self, scene: Scene, frame: Frame, moment: Moment) -> None:
        """Add bodies, goal and control to the scene."""

    def sizes(self, adjoints: np.ndarray) -> np.ndarray:
        """|λ| of every body, [n, bodies], for adjoints [n, *state_shape]; by default every component is a body."""
        return np.abs(adjoints).reshape(len(adjoints), -1)

    def solid(self, moment: Moment) -> Solid | None:
        """The same in three dimensions, for windows that can turn it; None for what is flat."""
        return None

    def push(self, state: np.ndarray, start: np.ndarray, drag: np.ndarray) -> np.ndarray:
        """A copy of `state` whose body nearest to `start` is pushed along `drag`; both [2], in the world.

        By default nothing is moved.
        """
        return np.array(state, dtype=float)


class StatePlot(Drawing):
    """State components over time, one line each, the control below them to its own scale; bodies are components.

    World coordinates are the step and the value. Pushing adds the height of the drag to the nearest component.
    """

    _LOW, _HIGH = (0.16, 0.36), (0.95, 0.8)
    _STRIP = (0.16, 0.3)
    _MOST = 64  # components; more cannot be told apart
    _NAMED = len(CYCLE)  # components up to which each is named, in its own colour

    def __init__(self, system: System, goal: np.ndarray | None = None):
        self.goal = goal

    def frame(self, states):
        values = states[np.isfinite(states)]
        values = values if len(values) else np.zeros(1)
        if self.goal is not None:
            values = np.append(values, self.goal)
        low, high = float(values.min()), float(values.max())
        gap = max(0.05 * (high - low), 1e-3 * max(abs(low), abs(high), 1.0))
        return Frame.of_box((0.0, low - gap), (max(len(states) - 1, 1), high + gap), self._LOW, self._HIGH)

    def stills(self, shown):
        frame = self.frame(np.concatenate([states for states, _ in shown]))
        return [frame] * len(shown)

    def draw(self, scene, frame, moment):
        # Values as in the frame, and steps as in the rollout.
        low, high = (float(frame.world((0.0, height))[1]) for height in (self._LOW[1], self._HIGH[1]))
        frame = Frame.of_box((0.0, low), (max(len(moment.states) - 1, 1), high), self._LOW, self._HIGH)
        self._axes(scene, frame, moment)
        values = moment.states.reshape(len(moment.states), -1)[:, : self._MOST]
        colours = np.array([CYCLE[index % len(CYCLE)] for index in range(values.shape[1])], dtype=np.uint32)
        self._names(scene, colours)
        times = np.arange(moment.t + 1)
        for column, colour in zip(values.T, colours, strict=True):
            scene.polyline(frame(np.stack([times, column[: moment.t + 1]], axis=1)), 0.008, int(colour))
        now = values[moment.t]
        finite = np.isfinite(now)
        shown = colours if moment.shades is None else moment.shades[: self._MOST]
        centres = np.stack([np.full(finite.sum(), moment.t), now[finite]], axis=1)
        scene.circles(frame(centres), 0.018, shown[finite])
        self._controls(scene, frame, moment)

    def push(self, state, start, drag):
        pushed = np.array(state, dtype=float)
        nearest = int(np.nanargmin(np.abs(pushed - start[1])))
        pushed.reshape(-1)[nearest] += drag[1]
        return pushed

    def _axes(self, scene: Scene, frame: Frame, moment: Moment) -> None:
        (x0, y0), (x1, y1) = self._LOW, self._HIGH
        for low, high in ((y0, y1), self._STRIP):
            scene.lines([(x0, low), (x0, low)], [(x1, low), (x0, high)], 0.003, PALE)
        for height in (y0, y1):
            scene.text(f"{frame.world((0.0, height))[1]:.3g}", (0.01, height + 0.015), SMALL, GREY)
        if self.goal is not None:
            targets = [(0.0, value) for value in np.ravel(self.goal)]
            scene.lines(frame(targets), frame([(len(moment.states) - 1, y) for _, y in targets]), 0.003, GREY)
        now = frame([(moment.t, 0.0)])[0, 0]
        scene.lines([(now, self._STRIP[0])], [(now, y1)], 0.002, GREY)

    def _controls(self, scene: Scene, frame: Frame, moment: Moment) -> None:
        """Controls up to now in a strip of their own, the present one as arrows."""
        flat = moment.controls.reshape(len(moment.controls), -1)[:, : self._MOST]
        middle, half = sum(self._STRIP) / 2, (self._STRIP[1] - self._STRIP[0]) / 2
        most = largest(flat)
        heights = middle + half * flat / most
        across = frame([(t, 0.0) for t in range(len(flat))])[:, 0]
        for column in heights.T:
            scene.polyline(np.stack([across, column], axis=1)[: moment.t + 1], 0.006, GREY)
        if moment.t < len(flat):
            ends = heights[moment.t][np.isfinite(heights[moment.t])]
            begin = np.stack([np.full(len(ends), across[moment.t]), np.full(len(ends), middle)], axis=1)
            scene.arrows(begin, begin + np.stack([np.zeros(len(ends)), ends - middle], axis=1), 0.008, BLACK)
        scale = f"within +-{most:.3g}" if most > largest(np.zeros(1)) else "0"
        scene.text(f"control, {scale}", (0.16, self._STRIP[1] + 0.035), SMALL, GREY)

    def _names(self, scene: Scene, colours: np.ndarray) -> None:
        """The number of each component in the colour of its line, above the lines."""
        x, height = self._LOW[0], self._HIGH[1] + 0.035
        scene.text("state", (x, height), SMALL, GREY)
        for index, colour in enumerate(colours[: self._NAMED]):
            scene.text(str(index), (x + 0.13 + 0.04 * index, height), SMALL, int(colour))
        if len(colours) > self._NAMED:
            scene.text("...", (x + 0.13 + 0.04 * self._NAMED, height), SMALL, GREY)


def fastest_of(velocities: Sequence[np.ndarray]) -> float:
    """The speed that all but 2% of the finite velocities [T+1, dim, n] do not exceed; those that do look like it."""
    speeds = np.concatenate([np.linalg.norm(one, axis=1).ravel() for one in velocities])
    speeds = speeds[np.isfinite(speeds)]
    return max(float(np.quantile(speeds, 0.98)), 1e-12) if len(speeds) else 1.0


def largest(values: np.ndarray) -> float:
    """Largest finite |value|, never 0."""
    finite = np.abs(values[np.isfinite(values)])
    return max(float(finite.max()) if len(finite) else 0.0, 1e-12)

"""What is drawn, as plain data: circles, lines, triangles and text in the unit square, in the order of painting."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from training.viewing.palette import BLACK, GREEN, GREY, flow

# What bodies may fill of a picture; above it stand who and when, below it what colours mean.
INSIDE = ((0.04, 0.15), (0.96, 0.81))
# Letters that can be read at 300 pixels.
LARGE, MEDIUM, SMALL = 0.05, 0.042, 0.036


# Corners of marks, and the angle of the first.
_CORNERS = {"s": (4, 45.0), "D": (4, 0.0), "^": (3, 90.0), "v": (3, -90.0)}


@dataclass
class Circles:
    """Discs: centres [n, 2], radii and colours, each one for all or [n]."""

    centres: np.ndarray
    radius: float | np.ndarray
    colour: int | np.ndarray


@dataclass
class Lines:
    """Segments with round ends: begin and end [n, 2], one width, colours one for all or [n]."""

    begin: np.ndarray
    end: np.ndarray
    width: float
    colour: int | np.ndarray


@dataclass
class Triangles:
    """Corners a, b, c, each [n, 2], and one colour."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    colour: int


@dataclass
class Text:
    """ASCII text with its upper left corner at `position`; the height of its letters is about `size`."""

    content: str
    position: tuple[float, float]
    size: float
    colour: int


Primitive = Circles | Lines | Triangles | Text


@dataclass
class Scene:
    """Primitives of one panel. (0, 0) is the lower left corner of the unit square, (1, 1) the upper right one.

    Radii, widths and sizes are fractions of the square's side, colours 0xRRGGBB.
    """

    primitives: list[Primitive] = field(default_factory=list)

    def circles(self, centres, radius: float | np.ndarray, colour: int | np.ndarray = BLACK) -> None:
        self.primitives.append(Circles(_points(centres), radius, colour))

    def lines(self, begin, end, width: float = 0.004, colour: int | np.ndarray = BLACK) -> None:
        self.primitives.append(Lines(_points(begin), _points(end), width, colour))

    def polyline(self, points, width: float = 0.004, colour: int = BLACK, dashes: Sequence[float] = ()) -> None:
        """Points [n, 2] joined in order; gaps where a point is not finite.

        Args:
            dashes: lengths of line and gap by turns, in widths; none for a whole line.
        """
        points = _points(points)
        finite = np.isfinite(points).all(1)
        joined = finite[:-1] & finite[1:]
        begin, end = points[:-1][joined], points[1:][joined]
        if dashes and len(begin):
            begin, end = _dashed(begin, end, width * np.asarray(dashes))
        if len(begin):
            self.lines(begin, end, width, colour)

    def triangles(self, a, b, c, colour: int = BLACK) -> None:
        self.primitives.append(Triangles(_points(a), _points(b), _points(c), colour))

    def rectangle(self, low, high, colour: int) -> None:
        """A filled rectangle between two corners."""
        (x0, y0), (x1, y1) = low, high
        self.triangles([(x0, y0), (x0, y0)], [(x1, y0), (x1, y1)], [(x1, y1), (x0, y1)], colour)

    def arrows(self, begin, end, width: float = 0.006, colour: int = BLACK) -> None:
        """Arrows [n, 2] → [n, 2] with filled heads; those too short to see are left out."""
        begin, end = _points(begin), _points(end)
        length = np.linalg.norm(end - begin, axis=1)
        seen = (length > width) & np.isfinite(length)
        if not seen.any():
            return
        begin, end, length = begin[seen], end[seen], length[seen, None]
        along = (end - begin) / length
        across = np.stack([-along[:, 1], along[:, 0]], axis=1)
        head = np.minimum(4.0 * width, length)
        neck = end - head * along
        self.lines(begin, neck, width, colour)
        self.triangles(end, neck + 0.5 * head * across, neck - 0.5 * head * across, colour)

    def cross(self, centre, arm: float = 0.03, width: float = 0.012, colour: int = GREEN) -> None:
        """Two lines across each other."""
        begin = _points(centre) + np.array([(-arm, -arm), (-arm, arm)])
        self.lines(begin, begin + np.array([(2 * arm, 2 * arm), (2 * arm, -2 * arm)]), width, colour)

    def marks(self, centres, marker: str, size: float, colour: int) -> None:
        """Marks of so far across at centres [n, 2], in matplotlib's letters: o s ^ v D X P."""
        centres = _points(centres)
        centres = centres[np.isfinite(centres).all(1)]
        if marker == "o":
            self.circles(centres, size / 2, colour)
        elif marker in _CORNERS:
            count, first = _CORNERS[marker]
            angles = np.deg2rad(first + 360.0 * np.arange(count + 1) / count)
            ring = 0.7 * size * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            for one, other in itertools.pairwise(ring):
                self.triangles(centres, centres + one, centres + other, colour)
        else:
            for angle in np.deg2rad((45.0, 135.0) if marker == "X" else (0.0, 90.0)):
                arm = 0.5 * size * np.array([np.cos(angle), np.sin(angle)])
                self.lines(centres - arm, centres + arm, 0.3 * size, colour)

    def goal(self, place) -> None:
        """A cross at the goal; where that is outside, an arrow at the edge toward it."""
        place = _points(place)[0]
        (left, floor), (right, ceiling) = INSIDE
        if (left - 0.03 <= place[0] <= right + 0.03) and (floor - 0.03 <= place[1] <= ceiling + 0.03):
            self.cross(place)
            return
        middle = np.array([(left + right) / 2, (floor + ceiling) / 2])
        away = place - middle
        scale = np.min(np.array([right - left, ceiling - floor]) / 2 / np.maximum(np.abs(away), 1e-12))
        edge = middle + scale * away
        self.arrows([edge - 0.12 * away / np.linalg.norm(away)], [edge], 0.014, GREEN)

    def speed_bar(self, fastest: float) -> None:
        """What the colours of `flow` mean, at the foot."""
        values, height = np.linspace(0.0, 1.0, 64), 0.095
        middle, half = np.stack([0.3 + 0.5 * values, np.full(64, height)], 1), np.array([0.0, 0.008])
        self.lines(middle - half, middle + half, 0.016, flow(values, 1.0))
        self.text("speed  0", (0.06, height + 0.02), SMALL, GREY)
        self.text(f"{fastest:.2g}", (0.84, height + 0.02), SMALL, GREY)

    def text(self, content: str, position: tuple[float, float], size: float = 0.03, colour: int = BLACK) -> None:
        self.primitives.append(Text(content, position, size, colour))


@dataclass(frozen=True)
class Frame:
    """The world seen through a window: `centre` (x, y) of the world at (½, ½), `extent` of it across and upward."""

    centre: tuple[float, float]
    extent: tuple[float, float]

    @classmethod
    def around(cls, points: np.ndarray, margin: float = 0.2, least: float = 1.0) -> "Frame":
        """Around the finite ones of points [..., 2], to one scale; `margin` on all sides is a share of the extent."""
        points = _points(points)
        points = points[np.isfinite(points).all(1)]
        if not len(points):
            return cls((0.0, 0.0), (least, least))
        low, high = points.min(0), points.max(0)
        x, y = (low + high) / 2
        extent = max(float((high - low).max()) * (1 + 2 * margin), least)
        return cls((float(x), float(y)), (extent, extent))

    @classmethod
    def filling(cls, points: np.ndarray, least: float = 1e-3) -> "Frame":
        """In which the finite ones of points [..., 2] fill what is `INSIDE`, to one scale, at least `least` long."""
        points = _points(points)
        points = points[np.isfinite(points).all(1)]
        low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), np.zeros(2))
        inside = np.array(INSIDE)
        extent = max(float(((high - low) / (inside[1] - inside[0])).max()), least)
        x, y = (low + high) / 2 + (0.5 - inside.mean(0)) * extent
        return cls((float(x), float(y)), (extent, extent))

    @classmethod
    def of_box(cls, low, high, inside_low, inside_high) -> "Frame":
        """In which the box from `low` to `high` of the world fills that from `inside_low` to `inside_high`."""
        sides = [(h - l) / (ih - il) for l, h, il, ih in zip(low, high, inside_low, inside_high, strict=True)]
        x, y = (l + (0.5 - il) * side for l, il, side in zip(low, inside_low, sides, strict=True))
        return cls((x, y), (sides[0], sides[1]))

    def __call__(self, points) -> np.ndarray:
        """World [n, 2] to unit square [n, 2]."""
        return (_points(points) - self.centre) / self.extent + 0.5

    def world(self, point) -> np.ndarray:
        """Unit square to world, [2]."""
        return (np.asarray(point) - 0.5) * self.extent + self.centre

    def length(self, value: float) -> float:
        """A length across the world as a fraction of the unit square."""
        return value / self.extent[0]


def _dashed(begin: np.ndarray, end: np.ndarray, dashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of segments [n, 2] that a pattern of lengths of line and gap leaves."""
    lengths = np.linalg.norm(end - begin, axis=1)
    ends = lengths.cumsum()
    period = dashes.sum()
    cuts = (np.arange(np.ceil(ends[-1] / period) + 1)[:, None] * period + np.append(0.0, dashes.cumsum()[:-1])).ravel()
    places = np.unique(np.concatenate([[0.0], ends, cuts[(cuts > 0) & (cuts < ends[-1])]]))
    middles = (places[1:] + places[:-1]) / 2
    drawn = np.searchsorted(dashes.cumsum(), middles % period, side="right") % 2 == 0
    of = np.minimum(np.searchsorted(ends, middles), len(ends) - 1)
    along, starts = (end - begin) / np.maximum(lengths, 1e-30)[:, None], ends - lengths
    at = lambda place: begin[of] + along[of] * (place - starts[of])[:, None]  # noqa: E731
    return at(places[:-1])[drawn], at(places[1:])[drawn]


def _points(values) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(-1, 2)

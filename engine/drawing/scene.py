"""What is drawn, as plain data: circles, lines, triangles and text in the unit square, in the order of painting."""

from dataclasses import dataclass, field

import numpy as np

# Okabe and Ito (2008): colours that colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN = 0x000000, 0xE69F00, 0x56B4E9, 0x009E73
YELLOW, BLUE, VERMILION, PURPLE = 0xF0E442, 0x0072B2, 0xD55E00, 0xCC79A7
WHITE, GREY, PALE = 0xFFFFFF, 0x8A8A8A, 0xE2E2E2
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)

# Viridis at equal distances: brightness grows with the value, for every kind of sight.
_VIRIDIS = (0x440154, 0x3B528B, 0x21918C, 0x5EC962, 0xFDE725)


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

    def polyline(self, points, width: float = 0.004, colour: int = BLACK) -> None:
        """Points [n, 2] joined in order; gaps where a point is not finite."""
        points = _points(points)
        finite = np.isfinite(points).all(1)
        joined = finite[:-1] & finite[1:]
        if joined.any():
            self.lines(points[:-1][joined], points[1:][joined], width, colour)

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


def shades(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours [n] of sizes [n] on a log scale from dark (`low`) to bright (`high`); grey where a size is 0."""
    values = np.asarray(values, dtype=float)
    positive = np.isfinite(values) & (values > 0)
    span = max(np.log(high) - np.log(low), 1e-12)
    place = np.clip((np.log(np.where(positive, values, low)) - np.log(low)) / span, 0.0, 1.0)
    stops = np.array([[(stop >> shift) & 255 for shift in (16, 8, 0)] for stop in _VIRIDIS], dtype=float)
    knots = np.linspace(0.0, 1.0, len(stops))
    red, green, blue = (np.interp(place, knots, stops[:, channel]).round().astype(np.uint32) for channel in range(3))
    return np.where(positive, (red << 16) | (green << 8) | blue, np.uint32(GREY)).astype(np.uint32)


def _points(values) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(-1, 2)

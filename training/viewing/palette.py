"""Colours and line styles, the same in windows, films and figures."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

# Okabe and Ito (2008): colours that colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN = 0x000000, 0xE69F00, 0x56B4E9, 0x009E73
BLUE, VERMILION, PURPLE = 0x0072B2, 0xD55E00, 0xCC79A7
WHITE, DARK, GREY, PALE = 0xFFFFFF, 0x555555, 0x767676, 0xE2E2E2
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
# Tol's muted colours: for gradients without a letter.
_OTHERS = (0x332288, 0x999933, 0xAA4499, 0x44AA99, 0x882255, 0x117733, 0xCC6677)

# From slow to fast: on white, and for every kind of sight, each colour lighter than the one before.
_FLOW = (BLUE, 0x1F8A8C, 0x5C9C3C, 0xA8A020, ORANGE)
# Viridis at equal distances: brightness grows with the value, for every kind of sight.
_VIRIDIS = (0x440154, 0x3B528B, 0x21918C, 0x5EC962, 0xFDE725)
# From below 0 over 0 to above: as far from pale to either side.
_BALANCE = (BLUE, 0x8CBEDD, 0xF4F4F4, 0xEFB48C, VERMILION)

# A colour for each gradient with a letter, and lengths of line and gap by turns, in widths of the line: what covers
# more comes first and is painted first, so that it is seen through the gaps of the others.
_LETTERS: dict[str, tuple[int, tuple[float, ...]]] = {
    "R": (BLACK, ()),
    "C": (VERMILION, (9.0, 1.6, 1.4, 1.6)),
    "M": (BLUE, (4.5, 1.8)),
    "N": (PURPLE, (5.0, 1.4, 1.2, 1.4, 1.2, 1.4)),
    "S": (GREEN, (1.2, 1.4)),
}
_DASHES = (*(dashes for _, dashes in _LETTERS.values()), (12.0, 3.0), (2.4, 2.4))
_OF_LETTER = {letter: place for place, letter in enumerate(_LETTERS)}
_MARKERS = ("", "o", "s", "^", "D", "v", "X", "P")
_MARKED = 7  # places on a line
# Lines that are painted first show on both sides of what covers them.
_WIDER = {0: 1.6, 1: 1.2}


@dataclass(frozen=True)
class Style:
    """How a variant is drawn in every figure: no two of one `styles_of` have dashes and marker in common.

    Attributes:
        rgb: 0xRRGGBB; marker: of matplotlib, "" for none.
        dashes: index of the pattern, 0 for a solid line.
    """

    rgb: int
    dashes: int
    marker: str

    @property
    def colour(self) -> str:
        """#RRGGBB."""
        return f"#{self.rgb:06X}"

    @property
    def lengths(self) -> tuple[float, ...]:
        """Of line and gap by turns, in widths; none for a solid line."""
        return _DASHES[self.dashes]

    @property
    def pattern(self) -> Any:
        """The line style as matplotlib takes it."""
        return (0, _DASHES[self.dashes]) if _DASHES[self.dashes] else "-"

    def marked(self, points: int) -> slice:
        """Which of so many points of a line bear its marker; two lines of different markers are marked apart."""
        step = max(points // _MARKED, 1)
        return slice(_MARKERS.index(self.marker) * step // len(_MARKERS), None, step)

    def line(self, points: int, width: float = 1.5) -> dict[str, Any]:
        """Options for `plot` with so many points; a single one, which has no line, is marked."""
        marked = self.marked(points)
        return {
            "color": self.colour, "linestyle": self.pattern, "linewidth": width * _WIDER.get(self.dashes, 1.0),
            "marker": self.marker or ("o" if points == 1 else None), "markersize": 4.5,
            "markevery": (marked.start, marked.step), "zorder": 2.0 + 0.1 * self.dashes,
        }  # fmt: skip


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A style for each variant, all different in dashes or marker, whatever their number.

    R, M, S, N and C have their own; what is made of one of them ("C, clipping norm", "decay(R, 0.5)") has its colour
    and dashes with a marker; all others get what is left in their order.
    """
    found: dict[str, Style] = {}
    taken: set[tuple[int, str]] = {(dashes, "") for dashes in _OF_LETTER.values()}
    others = 0
    for name in dict.fromkeys(names):
        letter = _letter_in(name)
        if letter == name:
            found[name] = Style(_LETTERS[name][0], _OF_LETTER[name], "")
            continue
        if letter is not None:
            rgb, wanted = _LETTERS[letter][0], [(_OF_LETTER[letter], marker) for marker in _MARKERS[1:]]
        else:
            rgb, wanted = _OTHERS[others % len(_OTHERS)], list(_places(others))
            others += 1
        free = [place for place in [*wanted, *_places(others)] if place not in taken]
        # With more variants than patterns and markers, colours still differ.
        dashes, marker = (free or wanted)[0]
        taken.add((dashes, marker))
        found[name] = Style(rgb, dashes, marker)
    return found


def style_of(name: str, among: Sequence[str] = ()) -> Style:
    """The style of one variant beside others."""
    return styles_of([*among, name])[name]


def _letter_in(name: str) -> str | None:
    """The one gradient with a letter that a variant is made of; None for none or several."""
    letters = set(re.findall(r"[A-Za-z][\w-]*", name.split(",")[0] if "(" not in name else name))
    known = letters & set(_LETTERS)
    return known.pop() if len(known) == 1 else None


def _places(first: int) -> Iterable[tuple[int, str]]:
    """All pairs of dashes and marker, beginning with the `first`; neighbours differ in both."""
    dashes, markers = len(_DASHES), len(_MARKERS) - 1
    for index in range(first, first + dashes * markers):
        yield index % dashes, _MARKERS[1 + (index + index // dashes) % markers]


def shades(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours [n] of sizes [n] on a log scale from dark (`low`) to bright (`high`); grey where a size is 0."""
    values = np.asarray(values, dtype=float)
    positive = np.isfinite(values) & (values > 0)
    span = max(np.log(high) - np.log(low), 1e-12)
    place = np.clip((np.log(np.where(positive, values, low)) - np.log(low)) / span, 0.0, 1.0)
    return np.where(positive, _between(_VIRIDIS, place), np.uint32(GREY)).astype(np.uint32)


def flow(speeds: np.ndarray, fastest: float) -> np.ndarray:
    """Colours [n] of speeds [n] from slow (blue) to `fastest` (orange), in equal steps."""
    return _between(_FLOW, np.clip(np.nan_to_num(speeds) / max(fastest, 1e-30), 0.0, 1.0))


def balance(values: np.ndarray, largest: float) -> np.ndarray:
    """Colours [n] of values [n] from -`largest` (blue) over 0 (pale) to `largest` (vermilion)."""
    return _between(_BALANCE, np.clip(np.nan_to_num(values) / max(largest, 1e-30) / 2 + 0.5, 0.0, 1.0))


def _between(stops: Sequence[int], places: np.ndarray) -> np.ndarray:
    """Colours [n] at places [n] in [0, 1] along stops at equal distances."""
    return _table(tuple(stops))[(255.0 * places + 0.5).astype(int)]


@lru_cache
def _table(stops: tuple[int, ...]) -> np.ndarray:
    channels = np.array([[(stop >> shift) & 255 for shift in (16, 8, 0)] for stop in stops], dtype=float)
    knots, places = np.linspace(0.0, 1.0, len(stops)), np.linspace(0.0, 1.0, 256)
    red, green, blue = (np.interp(places, knots, one).round().astype(np.uint32) for one in channels.T)
    return (red << 16) | (green << 8) | blue

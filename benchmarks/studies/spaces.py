"""A gradient's own number: families of gradients that differ in it alone, and where it is searched.

It is a number of the outermost part: the last one that has no default, else the last that is not whole, else the last
whole one that is not 0 by default, as switches and seeds are. The learning rate is searched beside it. Both lie between
the least and the largest that are given, and of one that is given alone within a factor of ten, as far as the gradient
takes such numbers.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import SettingError
from training.gradients import GRADIENTS, Parameter, gradient_named
from training.grammar import Call, parse
from training.short_horizons import Short
from training.variant import Variant

OPEN = "·"
_FACTOR = 10.0
_HALVINGS = 30


@dataclass(frozen=True)
class Space:
    """What is searched of one variant.

    Attributes:
        family: its gradient, with its number open where it has one.
        given: the variant as it was asked for, which is tried first.
        rates: the least and the largest learning rate.
        numbers: the least and the largest of the gradient's own number; None where it has none.
        whole: whether that is a whole number.
    """

    family: str
    given: Variant
    rates: tuple[float, float]
    numbers: tuple[float, float] | None = None
    whole: bool = False

    def variant(self, rate: float, number: float | None = None) -> Variant:
        """The variant with these, to three digits; with its number as given where the gradient takes no such one."""
        gradient = self.given.gradient
        if self.numbers is not None and number is not None:
            gradient = _filled(self.family, _within(number, *self.numbers)) or gradient
        return Variant.of(gradient, self.given.clipping, _within(rate, *self.rates))

    def number(self, variant: Variant) -> float | None:
        """The gradient's own number in one of its variants; None where none is searched."""
        found = split(variant.gradient)[1] if self.numbers is not None else None
        return int(found) if found is not None and self.whole else found


def spaces(gradients: Sequence[str], clippings: Sequence[str], rates: Sequence[float], horizon: int) -> list[Space]:
    """One for each family of gradients with each clipping; windows are no longer than the shortest `horizon`."""
    found: dict[str, dict[str, float | None]] = {}
    for text in gradients:
        family, number = split(text)
        found.setdefault(family, {})[text] = number
    result = []
    for family, texts in found.items():
        first, known = next(iter(texts)), [number for number in texts.values() if number is not None]
        whole = bool(known) and _is_whole(first)
        ends = _ends_of_numbers(family, known, whole, horizon) if known else None
        for clipping in clippings:
            given = Variant(first, clipping, rates[0])
            result.append(Space(family, given, ends_of_rates(rates), ends, whole))
    return result


def ends_of_rates(rates: Sequence[float]) -> tuple[float, float]:
    """The least and the largest learning rate that is searched."""
    return (min(rates), max(rates)) if len(rates) > 1 else (rates[0] / _FACTOR, rates[0] * _FACTOR)


def searched(study: Mapping[str, Any], gradient: str, rate: float) -> bool:
    """Whether a training of a study that was searched can have this gradient and this learning rate."""
    low, high = ends_of_rates(study["learning_rates"])
    known = {family_of(gradient_named(text).text) for text in study["gradients"]}
    return family_of(gradient) in known and low <= rate <= high


def family_of(text: str) -> str:
    """A gradient's text with its own number open: clip-norm(R, ·); itself where it has none."""
    return split(text)[0]


def families(gradients: Sequence[str]) -> dict[str, dict[float, str]]:
    """Families of at least two gradients: their texts by their number, in its order."""
    found: dict[str, dict[float, str]] = {}
    for text in gradients:
        family, knob = split(text)
        if knob is not None:
            found.setdefault(family, {})[knob] = text
    return {family: dict(sorted(texts.items())) for family, texts in found.items() if len(texts) > 1}


def split(text: str) -> tuple[str, float | None]:
    """A family and the number that is left open in it."""
    call = parse(text)
    place = _place(call)
    if place is None:
        return text, None
    knob = call.arguments[place][1]
    assert not isinstance(knob, Call)
    parts = [OPEN if index == place else _written(value) for index, (_, value) in enumerate(call.arguments)]
    return f"{call.name}({', '.join(parts)})", knob


def _place(call: Call) -> int | None:
    """Where in a call its own number stands; None where it has none."""
    places = [place for place, (_, value) in enumerate(call.arguments) if not isinstance(value, Call)]
    ranks = {place: _rank(GRADIENTS[call.name].parameters[place]) for place in places}
    return max((place for place in places if ranks[place]), key=lambda place: (ranks[place], place), default=None)


def _rank(parameter: Parameter) -> int:
    """How much a number is a gradient's own; 0 for one that is not."""
    if parameter.default is inspect.Parameter.empty:
        return 3
    return 2 if parameter.kind is float else int(parameter.default != 0)


def _written(value: float | Call) -> str:
    if not isinstance(value, Call):
        return repr(value).removesuffix(".0")
    inner = ", ".join(_written(entry) for _, entry in value.arguments)
    return f"{value.name}({inner})" if value.arguments else value.name


def _is_whole(text: str) -> bool:
    """Whether the number of a gradient, in canonical text, is a whole one."""
    call = parse(text)
    return GRADIENTS[call.name].parameters[_place(call) or 0].kind is int


def _filled(family: str, number: float) -> str | None:
    """The gradient of a family with this number, in canonical text; None where it takes no such number."""
    try:
        text = gradient_named(family.replace(OPEN, repr(float(number)))).text
    except SettingError:
        return None
    return text if family_of(text) == family else None  # paths(1, 1) is R


def _fits(family: str, number: float, horizon: int) -> bool:
    """Whether the gradient takes this number, and has no windows longer than `horizon`."""
    text = _filled(family, number)
    sources = () if text is None else gradient_named(text).estimator.rules
    return text is not None and not any(isinstance(one, Short) and one.steps > horizon for one in sources)


def _ends_of_numbers(family: str, known: Sequence[float], whole: bool, horizon: int) -> tuple[float, float] | None:
    """The least and the largest number to search; None where the gradient takes none but the given one."""
    low, high = min(known), max(known)
    if low == high:
        ends = sorted((low / _FACTOR, low * _FACTOR)) if low else (0.0, 1.0)
        low, high = (_reached(family, known[0], end, whole, horizon) for end in ends)
    return (low, high) if low < high else None


def _reached(family: str, start: float, end: float, whole: bool, horizon: int) -> float:
    """The number next to `end`, from `start` on, that a gradient takes."""
    if whole:
        end = float(round(end))
    taken, near, far = start, 0.0, 1.0
    if _fits(family, end, horizon):
        return end
    for _ in range(_HALVINGS):
        share = (near + far) / 2.0
        number = start + share * (end - start)
        number = float(round(number)) if whole else number
        if not _fits(family, number, horizon):
            far = share
        else:
            near, taken = share, number
    plain = float(f"{taken:.3g}")
    return plain if _fits(family, plain, horizon) else taken


def _within(number: float, low: float, high: float) -> float:
    """A number to three digits, between these."""
    return min(max(float(f"{number:.3g}"), low), high)

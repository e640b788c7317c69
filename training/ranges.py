"""Ranges of physical parameters, as text such as pole_mass=0.08:0.12."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine import SettingError
from engine.checks import finite, perhaps

Range = tuple[str, float, float]


def range_of(text: str) -> Range:
    """(name, low, high) of NAME=LOW:HIGH or of NAME=VALUE; SettingError if it is neither."""
    name, _, bounds = text.partition("=")
    low, colon, high = bounds.partition(":")
    try:
        return name.strip(), float(low), float(high if colon else low)
    except ValueError:
        raise SettingError(f"Expected a range such as pole_mass=0.08:0.12, got {text!r}.") from None


def as_ranges(given: Any) -> tuple[Range, ...]:
    """Ranges given as such or as text, one or several; SettingError for anything else."""
    if isinstance(given, str):
        given = (given,)
    ranges = []
    for entry in given if isinstance(given, (tuple, list)) else (given,):
        if isinstance(entry, str):
            entry = range_of(entry)
        if not isinstance(entry, (tuple, list)) or len(entry) != 3:
            raise SettingError(f"Expected a range as (name, low, high) or pole_mass=0.08:0.12, got {entry!r}.")
        ranges.append(tuple(entry))
    return tuple(ranges)


def as_texts(given: Any) -> tuple[str, ...]:
    """The same as texts, as files hold them: those that were given as such are kept."""
    ranges = as_ranges(given)
    entries = (given,) if isinstance(given, str) else given
    return tuple(
        entry if isinstance(entry, str) else f"{name}={low!r}:{high!r}"
        for entry, (name, low, high) in zip(entries, ranges, strict=True)
    )


def check_ranges(
    ranges: Sequence[Range], known: Mapping[str, float], positive: Collection[str], not_negative: Collection[str]
) -> None:
    """SettingError unless all are finite ranges, low first, of different parameters among `known`."""
    for name, low, high in ranges:
        if name not in known:
            if not known:
                raise SettingError(f"Expected a task with parameters that can vary, got one without any and {name!r}.")
            raise SettingError(f"Expected a parameter among {', '.join(known)}, got {name!r}{perhaps(name, known)}.")
        low, high = (finite(f"finite bounds of {name}", bound) for bound in (low, high))
        if low > high or (name in positive and low <= 0) or (name in not_negative and low < 0):
            least = " above 0" if name in positive else " of at least 0" if name in not_negative else ""
            raise SettingError(f"Expected {name} from a low{least} to a high bound, got {low:g}:{high:g}.")
    names = [name for name, *_ in ranges]
    if len(set(names)) < len(names):
        raise SettingError(f"Expected each parameter once, got {', '.join(names)}.")

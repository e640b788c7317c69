"""Checks of the numbers that users give: each returns the value as a plain Python number or ends in one sentence.

`wanted` is what the sentence says was expected, such as "cart-pole with at least 1 pole": a value that is none of that
ends in "Expected cart-pole with at least 1 pole, got 0." Booleans are no numbers here; numbers of NumPy are.
"""

import difflib
import math
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from engine.errors import SettingError

_BEYOND = 2**1023  # whole numbers from here on are refused; the largest float is twice that


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number that there is a float for, NaN and infinity included."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return not isinstance(value, Integral) or abs(int(value)) < _BEYOND


def plain(value: Any) -> Any:
    """A number of NumPy as Python's, which files can hold; other values as they are."""
    return value.item() if isinstance(value, np.generic) else value


def several(wanted: str, values: Any) -> tuple:
    """`values` as a tuple; text and single values are none."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise _refused(wanted, values)
    return tuple(values)


def whole(wanted: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int from `least` to `most`."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        raise _refused(wanted, value)
    return int(value)


def real(wanted: str, value: Any) -> float:
    """`value` as a float, NaN and infinity included."""
    if not is_number(value):
        raise _refused(wanted, value)
    return float(value)


def finite(wanted: str, value: Any, good: Callable[[float], bool] = lambda number: True) -> float:
    """`value` as a finite float for which `good` holds."""
    number = real(wanted, value)
    if math.isinf(number) and "finite" not in wanted:
        raise SettingError(f"Expected {wanted}, as a finite number, got {value}.")
    if not math.isfinite(number) or not good(number):
        raise _refused(wanted, value)
    return number


def positive(wanted: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    return finite(wanted, value, lambda number: number > 0)


def above_zero(wanted: str, value: Any) -> float:
    """`value` as a float above 0, infinity included."""
    number = real(wanted, value)
    if not number > 0:
        raise _refused(wanted, value)
    return number


def not_negative(wanted: str, value: Any) -> float:
    """`value` as a finite float of at least 0."""
    return finite(wanted, value, lambda number: number >= 0)


def flag(wanted: str, value: Any) -> bool:
    """`value`, which is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise SettingError(f"Expected {wanted} as True or False, got {value!r}.")
    return bool(value)


def one_of(wanted: str, value: Any, choices: Collection[int | str]) -> Any:
    """The one of `choices`, whole numbers or names, that `value` is."""
    if not (isinstance(value, str) or is_whole(value)) or value not in choices:
        raise _refused(wanted, value)
    return value if isinstance(value, str) else int(value)


def _refused(wanted: str, value: Any) -> SettingError:
    shown = f"{value}" if isinstance(value, Real) else repr(value)  # NumPy's numbers have a longer repr
    return SettingError(f"Expected {wanted}, got {shown if len(shown) <= 80 else shown[:77] + '...'}.")


def perhaps(got: str, known: Iterable[str]) -> str:
    """ " (perhaps cart-pole)" for a name much like one that is known, else nothing: the end of a message."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(got.lower(), names, 1)
    return f" (perhaps {names[close[0]]})" if close else ""

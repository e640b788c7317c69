"""Checks of the numbers that users give: each returns the value as a plain Python number or ends in one sentence.

`wanted` is what the sentence says was expected, such as "cart-pole with at least 1 pole": a value that is none of that
ends in "Expected cart-pole with at least 1 pole, got 0." Booleans are no numbers here; numbers of NumPy are.
"""

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from engine.errors import EvenflowError, SettingError

Choice = TypeVar("Choice")


def whole(
    wanted: str, value: Any, least: int = 1, most: int | None = None, error: type[EvenflowError] = SettingError
) -> int:
    """`value` as an int from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise error(f"Expected {wanted}, as a whole number, got {value!r}.")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise error(f"Expected {wanted}, got {number}.")
    return number


def finite(wanted: str, value: Any, good: Callable[[float], bool] = lambda number: True) -> float:
    """`value` as a finite float for which `good` holds."""
    number = real(wanted, value)
    if math.isinf(number):
        raise SettingError(f"Expected {wanted}, as a finite number, got {number}.")
    if math.isnan(number) or not good(number):
        raise SettingError(f"Expected {wanted}, got {number}.")
    return number


def positive(wanted: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    return finite(wanted, value, lambda number: number > 0)


def at_least_zero(wanted: str, value: Any) -> float:
    """`value` as a finite float of at least 0."""
    return finite(wanted, value, lambda number: number >= 0)


def real(wanted: str, value: Any) -> float:
    """`value` as a float, NaN and infinity included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SettingError(f"Expected {wanted}, as a number, got {value!r}.")
    try:
        return float(value)
    except OverflowError as error:
        raise SettingError(f"Expected {wanted}, as a finite number, got one beyond float64.") from error


def flag(wanted: str, value: Any) -> bool:
    """`value`, True or False."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise SettingError(f"Expected {wanted} as True or False, got {value!r}.")


def one_of(wanted: str, value: Any, choices: Collection[Choice]) -> Choice:
    """The one of `choices` that `value` equals and is of the kind of."""
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
        if isinstance(choice, int) and isinstance(value, Integral) and not isinstance(value, bool) and value == choice:
            return choice
    raise SettingError(f"Expected {wanted}, got {value!r}.")

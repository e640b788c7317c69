"""Values read from files, checked against the dataclasses that they are to fill, and names close to one another."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from engine import SettingError


def check_types(kind: type, values: Mapping[str, Any], what: str = "settings") -> None:
    """SettingError unless every value is named like a field of the dataclass `kind` and is of that field's type."""
    hints, names = get_type_hints(kind), [entry.name for entry in fields(kind)]
    for name, value in values.items():
        if name not in names:
            raise SettingError(f"Expected {what} among {', '.join(names)}, got {name!r}.")
        if not _fits(value, hints[name]):
            wanted = inspect.formatannotation(hints[name])
            raise SettingError(f"Expected {name.replace('_', ' ')} as {wanted}, got {value!r}.")


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, entry) for entry in arguments)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is ... and isinstance(value, tuple) else arguments
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):  # a bool is an int to Python alone
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first name whose values differ, `name.key` of those that are mappings themselves, and both; None if equal."""
    for name in dict.fromkeys((*one, *other)):
        before, now = one.get(name), other.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            key = next(key for key in (*before, *now) if before.get(key) != now.get(key))
            return f"{name}.{key}", before.get(key), now.get(key)
        return name, before, now
    return None

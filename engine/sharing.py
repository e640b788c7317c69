"""What kernels are compiled with, and those that equal objects share, where Taichi compiles those of each anew."""

import functools
from typing import Any

from engine.captured import Taken, captured, first_difference, held
from engine.errors import SettingError


def compiled_for(owner: Any) -> Any:
    """The object for which Taichi compiles the kernels of `owner`.

    That is `owner` itself unless its very class, not one it derives from, declares `read_by_kernels`: the names of all
    attributes of an object that the kernels read. Then it is an object of this class that has those attributes and no
    others, the same one for all owners that agree in their values, of equal types and signs. What a kernel reads and
    the class does not declare is therefore missed when it is first compiled, instead of being taken from another owner.
    """
    names = vars(type(owner)).get("read_by_kernels")
    if names is None:
        return owner
    values = tuple(getattr(owner, name) for name in names)
    return _stand_in(type(owner), names, values, repr(values))


def compiled_values(owner: Any) -> Taken:
    """What kernels of an object are compiled with, of it and of the program around its class."""
    return held(owner, vars(type(owner)).get("read_by_kernels")) + captured(type(owner))


def check_compiled(system: Any) -> Taken:
    """What a system's kernels are compiled with; SettingError if some is another now, which they would not see.

    Kernels of a class that declares `read_by_kernels` see it: they are compiled for the values.
    """
    values = compiled_values(system)
    if "read_by_kernels" in vars(type(system)):
        return values
    owner, before = vars(system).setdefault("_compiled_with", (id(system), values))
    if owner != id(system):  # a copy, whose kernels are its own
        vars(system)["_compiled_with"] = (id(system), values)
    elif (changed := first_difference(before, values)) is not None:
        _, then, now = changed
        raise SettingError(
            f"Expected {system.name} with {then}, as its kernels were compiled, got {now}; build another system."
        )
    return ()


@functools.cache
def _stand_in(kind: type, names: tuple[str, ...], values: tuple, written: str) -> Any:
    """Kept for as long as the process, as Taichi keeps what it compiled; `written` tells 1 from 1.0 and from True."""
    made = object.__new__(kind)
    vars(made).update(zip(names, values, strict=True))
    return made

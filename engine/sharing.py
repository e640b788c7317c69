"""What kernels are compiled with, and those that equal objects share, where Taichi compiles those of each anew."""

import ast
import functools
from typing import Any

from engine.captured import captured, constant, functions_of, is_constant, is_function, is_kernel, syntax
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


def compiled_values(owner: Any) -> dict[str, Any]:
    """What kernels of an object are compiled with, by name: constants and functions, of it and of the program."""
    names = vars(type(owner)).get("read_by_kernels")
    values = {name: getattr(owner, name, None) for name in (_read_by(type(owner)) if names is None else names)}
    found = {name: constant(value) for name, value in values.items() if is_constant(value)}
    for name, value in vars(owner).items():
        if is_function(value):
            found[name] = value
        if is_function(value) or is_kernel(value):
            found |= captured(value)
    return found | captured(type(owner))


def check_compiled(system: Any) -> tuple:
    """What a system's kernels are compiled with; SettingError if some is another now, which they would not see.

    Kernels of a class that declares `read_by_kernels` see it: they are compiled for the values.
    """
    values = compiled_values(system)
    if "read_by_kernels" in vars(type(system)):
        return tuple(values.items())
    owner, before = vars(system).setdefault("_compiled_with", (id(system), values))
    if owner != id(system):  # a copy, whose kernels are its own
        vars(system)["_compiled_with"] = (id(system), values)
    elif before != values and repr(before) != repr(values):
        name = next(name for name in (*before, *values) if repr(before.get(name)) != repr(values.get(name)))
        then, now = (_told(name, found.get(name)) for found in (before, values))
        raise SettingError(
            f"Expected {system.name} with {then}, as its kernels were compiled, got {now}; build another system."
        )
    return ()


@functools.cache
def _read_by(kind: type) -> tuple[str, ...]:
    """Names of the attributes that the functions and kernels of a class read, as far as there is source."""
    names = set()
    for tree in filter(None, map(syntax, functions_of(kind))):
        reads = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
        names |= {node.attr for node in reads if isinstance(node.value, ast.Name) and node.value.id == "self"}
    return tuple(sorted(names))


def _told(name: str, value: Any) -> str:
    return f"the function {name} at {id(value):#x}" if is_function(value) else f"{name} = {value!r}"


@functools.cache
def _stand_in(kind: type, names: tuple[str, ...], values: tuple, written: str) -> Any:
    """Kept for as long as the process, as Taichi keeps what it compiled; `written` tells 1 from 1.0 and from True."""
    made = object.__new__(kind)
    vars(made).update(zip(names, values, strict=True))
    return made

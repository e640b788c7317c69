"""What kernels are compiled with, and those that equal objects share, where Taichi compiles those of each anew."""

import ast
import functools
import inspect
import textwrap
from typing import Any

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
    """What kernels of an object read of it when they are compiled, by name: numbers, text and tuples of these."""
    names = vars(type(owner)).get("read_by_kernels")
    values = {name: getattr(owner, name, None) for name in (_read_by(type(owner)) if names is None else names)}
    return {name: value for name, value in values.items() if _plain(value)}


def check_compiled(system: Any) -> tuple:
    """What a system's kernels are compiled with; SettingError if one is another now, which they would not see.

    Kernels of a class that declares `read_by_kernels` see it: they are compiled for the values.
    """
    values = compiled_values(system)
    if "read_by_kernels" in vars(type(system)):
        return tuple(values.items())
    owner, before = vars(system).setdefault("_compiled_with", (id(system), values))
    if owner != id(system):  # a copy, whose kernels are its own
        vars(system)["_compiled_with"] = (id(system), values)
    elif before != values and repr(before) != repr(values):
        name = next(name for name in before if repr(before[name]) != repr(values.get(name)))
        raise SettingError(
            f"Expected {system.name} with {name} = {before[name]!r}, as its kernels were compiled, got "
            f"{values.get(name)!r}; build another system."
        )
    return ()


@functools.cache
def _read_by(kind: type) -> tuple[str, ...]:
    """Names of the attributes that the functions and kernels of a class read, as far as there is source."""
    names = set()
    for function in (member for cls in kind.__mro__ for member in vars(cls).values()):
        if getattr(function, "_is_taichi_function", False) or getattr(function, "_is_wrapped_kernel", False):
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
            except (OSError, TypeError, SyntaxError):
                continue
            reads = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
            names |= {node.attr for node in reads if isinstance(node.value, ast.Name) and node.value.id == "self"}
    return tuple(sorted(names))


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) or (isinstance(value, tuple) and all(map(_plain, value)))


@functools.cache
def _stand_in(kind: type, names: tuple[str, ...], values: tuple, written: str) -> Any:
    """Kept for as long as the process, as Taichi keeps what it compiled; `written` tells 1 from 1.0 and from True."""
    made = object.__new__(kind)
    vars(made).update(zip(names, values, strict=True))
    return made

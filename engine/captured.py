"""What Taichi takes of the program around a kernel as it compiles it: numbers and functions that are named there.

Taichi looks them up once. Whoever asks again sees whether they are still what they were.
"""

import ast
import builtins
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import taichi as ti

Taken = tuple[tuple[str, str], ...]
"""In the order in which it is read: a name, and what goes by it, as text: a value, or the source of a function."""


def is_function(value: Any) -> bool:
    """Whether this is a `@ti.func`."""
    return isinstance(value, types.FunctionType) and hasattr(value, "_is_taichi_function")


def is_kernel(value: Any) -> bool:
    """Whether this is a `@ti.kernel`."""
    return isinstance(value, types.FunctionType) and hasattr(value, "_is_wrapped_kernel")


def functions_of(kind: type) -> tuple[Callable, ...]:
    """The kernels and functions of a class, without those that it overrides."""
    members: dict[str, Any] = {}
    for cls in reversed(kind.__mro__):
        members |= vars(cls)
    bare = (member.__func__ if isinstance(member, staticmethod) else member for member in members.values())
    return tuple(member for member in bare if is_function(member) or is_kernel(member))


def captured(of: Callable | type) -> Taken:
    """What a kernel, a function, or those of a class take by name, and what the functions among that take in turn."""
    return _watched(of).taken()


def held(owner: Any, names: Sequence[str] | None = None) -> Taken:
    """What the kernels of an object take of it: of these attributes, or of all that the functions of its class read."""
    taken: list[tuple[str, str]] = []
    for path in _own_paths(type(owner)) if names is None else [(name,) for name in names]:
        value = functools.reduce(_attribute, path, owner)
        if (text := as_text(value)) is not None:
            taken.append((".".join(path), text))
    for name, value in getattr(owner, "__dict__", {}).items():
        if is_function(value):
            taken.append((name, _source(inspect.unwrap(value))))
        if is_function(value) or is_kernel(value):
            taken += captured(value)
    return tuple(taken)


def taken_by(function: Callable, arguments: Sequence) -> Taken:
    """What a kernel and those of its arguments that are compiled in take: what tells one compilation from another."""
    taken = captured(function)
    for value in arguments:
        if _attribute(value, "_data_oriented"):
            taken += held(value) + captured(type(value))
        elif is_function(value):
            taken += (("argument", _source(inspect.unwrap(value))), *captured(value))
    return taken


def as_text(value: Any) -> str | None:
    """What Taichi compiles in as a constant, in full; None for anything else."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return repr(kind(value))
    if isinstance(value, ti.Matrix):
        return as_text(value.to_list())
    if isinstance(value, ti.Field):
        return f"the field at {id(value):#x}"
    if isinstance(value, dict):
        return as_text([entry for pair in value.items() for entry in pair])
    if isinstance(value, (tuple, list)):
        texts = [as_text(entry) for entry in value]
        return None if None in texts else f"[{', '.join(map(str, texts))}]"
    return None


def first_difference(before: Taken, now: Taken) -> tuple[str, str, str] | None:
    """A name and what it was and is, in words; None where all is the same."""
    if before == now:
        return None
    longer = max(before, now, key=len)
    index = next((i for i, (one, other) in enumerate(zip(before, now, strict=False)) if one != other), None)
    name = longer[min(len(before), len(now)) if index is None else index][0]
    then, there = (_told(name, dict(taken).get(name)) for taken in (before, now))
    return name, then, there if there != then else f"another {name}"


def _told(name: str, text: str | None) -> str:
    if text is None:
        return f"no {name}"
    return f"the function {name}" if "\n" in text else f"{name} = {text}"


class _Paths(NamedTuple):
    """What a function reads: of the program, and of its first argument, each as names joined by dots."""

    outer: tuple[tuple[str, ...], ...]
    own: tuple[tuple[str, ...], ...]


class _Watched:
    """What something takes, found once and again when a place where it was looked for holds another object."""

    def __init__(self, of: Callable | type):
        self._roots = functions_of(of) if isinstance(of, type) else (of,)
        self._places: list[tuple[Callable[[], Any], Any]] | None = None
        self._values: list[tuple[str, Any]] = []
        self._text: Taken | None = None

    def taken(self) -> Taken:
        if self._places is None or any(look() is not found for look, found in self._places):
            places, values, seen = [], [], set()
            for function in self._roots:
                _follow(function, None, places, values, seen)
            self._places, self._values, self._text = places, values, None
        if self._text is None:
            text = tuple((name, found) for name, value in self._values if (found := _text_of(value)) is not None)
            if any(isinstance(value, (ti.Matrix, list, dict, tuple)) for _, value in self._values):
                return text  # which may change in place
            self._text = text
        return self._text


_watched = functools.cache(_Watched)


def _follow(
    function: Any, owner: Any, places: list[tuple[Callable[[], Any], Any]], values: list[tuple[str, Any]], seen: set
) -> None:
    """Add what a function takes, of the program and, where it is a method of an object of the program, of that."""
    raw = inspect.unwrap(function)
    if not isinstance(raw, types.FunctionType) or (raw, id(owner)) in seen:
        return
    seen.add((raw, id(owner)))
    outer, own = _paths(raw)
    for path in (*outer, *(own if owner is not None else ())):
        place = (
            id(owner) if path in own else id(raw if path[0] in raw.__code__.co_freevars else raw.__globals__),
            path,
        )
        if place in seen or (path[0] in vars(builtins) and path[0] not in raw.__globals__):
            continue
        seen.add(place)
        steps = list(_steps(raw, owner if path in own else None, path))
        value = steps[-1][1]
        if _of_taichi(steps[0][1]):
            continue
        places += steps
        values.append((".".join(path), value))
        if isinstance(value, types.MethodType):
            _follow(value.__func__, value.__self__, places, values, seen)
        elif is_function(value) or (isinstance(value, types.FunctionType) and value.__module__ == raw.__module__):
            _follow(value, None, places, values, seen)


def _steps(function: Any, owner: Any, path: tuple[str, ...]) -> Iterator[tuple[Callable[[], Any], Any]]:
    """How to look at each step of a path as a function reads it, and what is there now; None for nothing."""
    root, *names = path
    if owner is not None:
        value = owner
    else:
        free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        look = partial(_content, free[root]) if root in free else partial(function.__globals__.get, root)
        yield look, (value := look())
    for name in names:
        look = partial(_attribute, value, name)
        value = look()
        if not isinstance(value, types.MethodType):  # which is made anew whenever it is looked at
            yield look, value
    if isinstance(value, types.MethodType):
        yield (lambda: value), value


def _of_taichi(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == "taichi"


def _text_of(value: Any) -> str | None:
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return _source(inspect.unwrap(value))
    return as_text(value)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # an object of the user's, which may answer as it likes
        return None


@functools.cache
def _source(function: Callable) -> str:
    """The text of a function, so that the same one that is defined again is the same."""
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return f"{function!r}\n"


@functools.cache
def _paths(function: Callable) -> _Paths:
    try:
        tree = ast.parse(_source(function))
    except SyntaxError:
        return _Paths((), ())
    (body,) = tree.body if len(tree.body) == 1 else (tree,)
    arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    local = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    body = ast.Module(body.body, []) if isinstance(body, ast.FunctionDef) else body  # not what decorates and annotates
    read = dict.fromkeys(_chains(body))
    first = arguments[0] if arguments else None
    outer = tuple(path for path in read if path[0] not in local and path[0] not in arguments)
    return _Paths(outer, tuple(path for path in read if path[0] == first and len(path) > 1))


@functools.cache
def _own_paths(kind: type) -> tuple[tuple[str, ...], ...]:
    """Attributes of an object that the functions of its class read."""
    read = (path[1:] for function in functions_of(kind) for path in _paths(inspect.unwrap(function)).own)
    return tuple(sorted(set(read)))


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Each name that is read with all attributes that follow, such as ("params", "dt")."""
    names, base = [], node
    while isinstance(base, ast.Attribute):
        names.append(base.attr)
        base = base.value
    if isinstance(base, ast.Name):
        yield (base.id, *reversed(names))
        return
    for child in ast.iter_child_nodes(node):
        yield from _chains(child)

"""What Taichi takes of the program around a kernel as it compiles it: numbers and functions that are named there.

Taichi looks them up once. Whoever asks again sees whether they are still what they were.
"""

import ast
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import taichi as ti


def is_function(value: Any) -> bool:
    """Whether this is a `@ti.func`."""
    return isinstance(value, types.FunctionType) and hasattr(value, "_is_taichi_function")


def is_kernel(value: Any) -> bool:
    """Whether this is a `@ti.kernel`."""
    return isinstance(value, types.FunctionType) and hasattr(value, "_is_wrapped_kernel")


def is_constant(value: Any) -> bool:
    """Whether Taichi compiles this as a constant: numbers, text, tuples of these, and its vectors."""
    if isinstance(value, tuple):
        return all(map(is_constant, value))
    return isinstance(value, (bool, int, float, str, ti.Matrix))


def constant(value: Any) -> Any:
    """A constant as something that compares; Taichi's vectors as lists."""
    return value.to_list() if isinstance(value, ti.Matrix) else value


def functions_of(kind: type) -> tuple[Callable, ...]:
    """The kernels and functions of a class."""
    members = (member for cls in kind.__mro__ for member in vars(cls).values())
    return tuple(member for member in members if is_function(member) or is_kernel(member))


def captured(of: Callable | type) -> Mapping[str, Any]:
    """What a kernel, a function, or those of a class take by name, and what the functions among that take in turn."""
    return _watched(of).values()


def taken_by(function: Callable, arguments: Sequence) -> tuple:
    """What a kernel and those of its arguments that hold functions take, as what tells one compilation from another."""
    kinds = (type(value) for value in arguments if getattr(value, "_data_oriented", False))
    given = (value for value in arguments if is_function(value))
    found = itertools.chain.from_iterable(captured(of).items() for of in (function, *kinds, *given))
    return tuple((name, value if is_function(value) else repr(value)) for name, value in found)


def syntax(function: Callable) -> ast.AST | None:
    """The source of a function, as far as there is any."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return None


class _Watched:
    """What something takes, found once and again when one of the places where it was found holds another object."""

    def __init__(self, of: Callable | type):
        self._roots = functions_of(of) if isinstance(of, type) else (of,)
        self._places: list[tuple[Callable[[], Any], Any]] = []
        self._values: dict[str, Any] = {}
        self._found = False

    def values(self) -> Mapping[str, Any]:
        if not self._found or any(look() is not found for look, found in self._places):
            self._places, self._values, self._found = [], {}, True
            seen: set[Callable] = set()
            for function in self._roots:
                self._values |= self._taken(inspect.unwrap(function), seen)
        return self._values

    def _taken(self, function: Any, seen: set[Callable]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        if function in seen or not isinstance(function, types.FunctionType):
            return taken
        seen.add(function)
        for path in _paths(function):
            *_, (_, value) = places = list(_places(function, path))
            if is_function(value) or is_constant(value):
                name = ".".join(path)
                if taken.get(name, self._values.get(name, value)) is not value:  # of another module
                    name = f"{name} of {function.__module__}.{function.__qualname__}"
                taken[name] = constant(value)
                self._places += places
            if is_function(value):
                taken |= self._taken(inspect.unwrap(value), seen)
        return taken


def _places(function: types.FunctionType, path: tuple[str, ...]) -> Iterator[tuple[Callable[[], Any], Any]]:
    """How to look at each step of a path as a function reads it, and what is there now; None for nothing."""
    free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    root, *names = path
    look = partial(_content, free[root]) if root in free else partial(function.__globals__.get, root)
    yield look, (value := look())
    for name in names:
        look = partial(_attribute, value, name)
        yield look, (value := look())


_watched = functools.cache(_Watched)


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # an object of the user's, which may answer as it likes
        return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


@functools.cache
def _paths(function: Callable) -> tuple[tuple[str, ...], ...]:
    """What a function reads that is not its own, each as a name and the attributes that follow it."""
    tree = syntax(function)
    if tree is None:
        return ()
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    (body,) = tree.body if isinstance(tree, ast.Module) and len(tree.body) == 1 else (tree,)
    body = ast.Module(body.body, []) if isinstance(body, ast.FunctionDef) else body  # not what decorates and annotates
    return tuple(dict.fromkeys(path for path in _chains(body) if path[0] not in own))


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

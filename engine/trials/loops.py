"""Whether a kernel has loops whose length is known only when it runs, read from its source."""

import ast
import inspect
import textwrap
from typing import Any

from taichi.lang.kernel_impl import Kernel


def has_inner_loops(kernel: Kernel) -> bool:
    """Whether a sample of `kernel` may overwrite its locals in a loop: true too where the source cannot be read.

    The outermost loops are parallel and `ti.static` ones are unrolled; loops in the functions that the kernel calls
    count wherever they are.
    """
    return _loops(kernel.func, inside=False, seen=set())


def undifferentiable(kernel: Kernel) -> str:
    """The statement of `kernel` that Taichi cannot differentiate, such as "`continue` in line 12 of it", or nothing."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kernel.func)))
    except (OSError, TypeError, SyntaxError):
        return ""
    names = {ast.Continue: "continue", ast.Break: "break", ast.While: "while"}
    for node in ast.walk(tree):
        name = names.get(type(node))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("random", "randn"):
            name = f"ti.{node.func.attr}"  # pyright: ignore[reportAttributeAccessIssue]
        if name is not None:
            return f"`{name}` in its line {node.lineno}"  # pyright: ignore[reportAttributeAccessIssue]
    return ""


def _loops(function, inside: bool, seen: set) -> bool:
    if function in seen:
        return False
    seen.add(function)
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return True
    names = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    return any(_in_node(node, inside, names, seen) for node in getattr(body, "body", []))


def _in_node(node: ast.AST, inside: bool, names: dict, seen: set) -> bool:
    if isinstance(node, ast.While):
        return True
    if isinstance(node, ast.For) and not _static(node.iter):
        return inside or any(_in_node(child, True, names, seen) for child in node.body)
    if isinstance(node, ast.Call) and _called(node.func, names, seen):
        return True
    return any(_in_node(child, inside, names, seen) for child in ast.iter_child_nodes(node))


def _static(iterated: ast.AST) -> bool:
    return (
        isinstance(iterated, ast.Call) and getattr(iterated.func, "attr", getattr(iterated.func, "id", "")) == "static"
    )


def _called(called: ast.AST, names: dict, seen: set) -> bool:
    """Whether a function of the user's that is called here has loops."""
    path = []
    while isinstance(called, ast.Attribute):
        path.append(called.attr)
        called = called.value
    if not isinstance(called, ast.Name):
        return False
    if called.id == "self":
        return bool(path)  # a method of an object, which the source alone does not tell
    value: Any = names.get(called.id)
    for name in reversed(path):
        value = getattr(value, name, None)
    if not getattr(value, "_is_taichi_function", False) or getattr(value, "__module__", "").split(".")[0] == "taichi":
        return False
    return _loops(inspect.unwrap(value), True, seen)

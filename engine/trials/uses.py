"""Which of its arrays a kernel reads and writes, read from its source."""

import ast
import inspect
import textwrap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from taichi.lang.kernel_impl import Kernel


@dataclass(frozen=True)
class Uses:
    """Names of a kernel's arguments.

    Attributes:
        assigned: whose elements it assigns or adds to, itself.
        read, written: whose elements it may read and may write: what it hands to a function counts among both, and all
            do where there is no source.
    """

    assigned: frozenset[str]
    read: frozenset[str]
    written: frozenset[str]


_known: weakref.WeakKeyDictionary[Kernel, Uses] = weakref.WeakKeyDictionary()


def uses(kernel: Kernel) -> Uses:
    """What a kernel does with its arguments."""
    if kernel not in _known:
        _known[kernel] = _read(kernel)
    return _known[kernel]


def _read(kernel: Kernel) -> Uses:
    names = frozenset(argument.name for argument in kernel.arguments)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kernel.func)))
    except (OSError, TypeError, SyntaxError):
        return Uses(frozenset(), names, names)
    assigned = _named(_targets(tree)) & names
    handed, read = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            handed |= {value.id for value in _values(node) if isinstance(value, ast.Name)}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            read |= _named([node])
    return Uses(assigned, names & (read | handed), assigned | (names & handed))


def _targets(tree: ast.AST) -> list[ast.AST]:
    """What is assigned or added to."""
    targets: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets.append(node.target)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("atomic_") and node.args:
            targets.append(node.args[0])
    return targets


def _named(nodes: Sequence[ast.AST]) -> frozenset[str]:
    """Names of the arrays of which these are elements."""
    arrays = [node.value for node in nodes if isinstance(node, ast.Subscript)]
    return frozenset(array.id for array in arrays if isinstance(array, ast.Name))


def _values(call: ast.Call) -> list[ast.AST]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]

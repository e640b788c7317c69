"""A user's kernel in a tape: refused when it is recorded, not when it is replayed, if its gradient would be lost."""

import ast
import contextlib
import inspect
import textwrap
import weakref
from collections.abc import Sequence
from typing import Any

import taichi as ti
import torch
from taichi.lang.enums import AutodiffMode
from taichi.lang.kernel_impl import Kernel
from taichi.types.ndarray_type import NdarrayType

from engine import runtime
from engine.errors import AdjointError
from engine.launch import check_memory, compile_kernel
from engine.trials.isolation import Crash, Slow, isolated
from engine.trials.loops import has_inner_loops
from engine.trials.signature import check_array, check_constant

STACK_ENTRIES = 2**16
"""Of the autodiff stacks of kernels with loops, on the CPU, where size costs nothing but room on a thread's stack."""

# Adjoints with loops that have run in a child once.
_tried: weakref.WeakKeyDictionary[Kernel, set] = weakref.WeakKeyDictionary()


class RecordedKernel:
    """The entry of a kernel in a tape's list of calls.

    Args:
        kernel: what `@ti.kernel` made of the user's function.
        args: what it is called with.
        rollouts: those that were recorded before.

    Attributes:
        written: arrays with a gradient, as far as the kernel's own source tells, which it writes.

    Raises:
        ShapeError, SettingError: arguments that do not fit the kernel's annotations.
        AdjointError: a kernel that Taichi cannot differentiate, or arrays without a gradient on its path.
    """

    def __init__(self, kernel: Kernel, args: Sequence, rollouts: Sequence[Any]):
        self.autodiff_mode = AutodiffMode.NONE
        self.kernel, self.name = kernel, kernel.func.__name__
        self._check_arguments(args)
        self.written: list[torch.Tensor] = []
        self._check_gradients(args, rollouts)
        loops = runtime.current().backend == "cpu" and has_inner_loops(kernel)
        self._unsure = loops
        settings = {"ad_stack_size": runtime.current().ad_stack_size or STACK_ENTRIES} if loops else {}
        if kernel.grad is not None:
            compile_kernel(kernel.grad, args, settings=settings)

    def grad(self, *args) -> None:
        """Launch the adjoint; with loops for the first time in a child of the process."""
        adjoint = self.kernel.grad
        if adjoint is None:
            return
        key = tuple(value if isinstance(value, int) else getattr(value, "shape", None) for value in args)
        tried = _tried.setdefault(self.kernel, set())
        try:
            if self._unsure and key not in tried:
                with contextlib.suppress(Slow):
                    isolated(lambda: adjoint(*args))
                tried.add(key)
            adjoint(*args)
        except Crash as crash:
            raise AdjointError(
                f"Expected the loops of kernel {self.name!r} to fit the stacks of Taichi's automatic differentiation, "
                f"got {crash} in a trial; pass a larger ef.init(ad_stack_size=...) than "
                f"{runtime.current().ad_stack_size or STACK_ENTRIES}, shorten the loops or let the innermost add "
                "straight to an array."
            ) from None
        except RuntimeError as error:
            raise AdjointError(f"Expected the adjoint of kernel {self.name!r} to run, got {str(error)!r}.") from error

    def _check_arguments(self, args: Sequence) -> None:
        for parameter, value in zip(self.kernel.arguments, args, strict=True):
            name = f"argument {parameter.name!r} of kernel {self.name!r}"
            if isinstance(value, torch.Tensor) and not isinstance(parameter.annotation, ti.template):
                check_array(name, parameter.annotation, value.dim(), value.dtype)
                check_memory(name, value)
            elif isinstance(value, (str, type(None))) and not isinstance(parameter.annotation, ti.template):
                check_constant(name, parameter.annotation, value)

    def _check_gradients(self, args: Sequence, rollouts: Sequence[Any]) -> None:
        arrays = {
            parameter.name: value
            for parameter, value in zip(self.kernel.arguments, args, strict=True)
            if isinstance(parameter.annotation, NdarrayType) and isinstance(value, torch.Tensor)
        }
        if not any(value.requires_grad for value in arrays.values()):
            return
        written = _written(self.kernel)
        self.written = [value for name, value in arrays.items() if name in written]
        for name, value in arrays.items():
            if not value.is_floating_point():
                continue
            if value.requires_grad and not (value.is_leaf or value.retains_grad):
                raise AdjointError(
                    f"Expected argument {name!r} of kernel {self.name!r} as a tensor with a gradient of its own, got a "
                    "part of one or what torch made of one, to which Taichi's gradient would not go on; pass all of "
                    "it, such as rollout.states, and index it in the kernel."
                )
            if value.requires_grad:
                continue
            for kept in ("states", "controls"):
                if any(overlap(value, getattr(rollout, kept)) for rollout in rollouts):
                    raise AdjointError(
                        f"Expected rollout.{kept} with a gradient where kernel {self.name!r} reads them as {name!r}, "
                        f"got none, so that nothing would reach the rollout; call rollout.{kept}.requires_grad_() "
                        "before it."
                    )
            if name in written:
                raise AdjointError(
                    f"Expected argument {name!r}, which kernel {self.name!r} writes, with a gradient, got none, so "
                    "that nothing would pass through the kernel; call requires_grad_() on it before."
                )


def overlap(value: torch.Tensor, states: torch.Tensor) -> bool:
    """Whether both lie in one piece of memory."""
    return value.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()


def _written(kernel: Kernel) -> set[str]:
    """Names of the arrays whose elements `kernel` assigns or adds to in its own source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kernel.func)))
    except (OSError, TypeError, SyntaxError):
        return set()
    targets = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets.append(node.target)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("atomic_") and node.args:
            targets.append(node.args[0])
    names = [target.value for target in targets if isinstance(target, ast.Subscript)]
    return {name.id for name in names if isinstance(name, ast.Name)}

"""A user's kernel in a tape: refused when it is recorded, not when it is replayed, if its gradient would be lost."""

import contextlib
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import taichi as ti
import torch
from taichi.lang.enums import AutodiffMode
from taichi.lang.kernel_impl import Kernel
from taichi.types.ndarray_type import NdarrayType

from engine import runtime
from engine.captured import first_difference, taken_by
from engine.errors import AdjointError, EvenflowWarning
from engine.launch import check_memory, compile_kernel, prepare_bare
from engine.trials.derivative import Alone
from engine.trials.isolation import Crash, Slow, available, isolated
from engine.trials.loops import has_inner_loops
from engine.trials.signature import check_array, check_constant
from engine.trials.uses import uses

STACK_ENTRIES = 2**16
"""Of the autodiff stacks of kernels with loops, on the CPU, where size costs nothing but room on a thread's stack."""

# Adjoints with loops that have run in a child once, and those that have been compared with differences.
_tried: weakref.WeakKeyDictionary[Kernel, set] = weakref.WeakKeyDictionary()
_compared: weakref.WeakKeyDictionary[Kernel, set] = weakref.WeakKeyDictionary()
# What a comparison may take; a kernel that takes longer is believed.
_SECONDS = 30.0


class RecordedKernel:
    """The entry of a kernel in a tape's list of calls.

    Args:
        kernel: what `@ti.kernel` made of the user's function.
        args: what it is called with.
        rollouts: those that were recorded before.

    Attributes:
        written: arrays with a gradient, as far as the kernel's own source tells, which it writes.
        changes, reads: all arrays that it may write, and may read.
        kept: arrays that were written again after it, each with what it held until then.

    Raises:
        ShapeError, SettingError: arguments that do not fit the kernel's annotations.
        AdjointError: a kernel that Taichi cannot differentiate or differentiates wrongly, or arrays without a gradient
            on its path.
    """

    def __init__(self, kernel: Kernel, args: Sequence, rollouts: Sequence[Any]):
        self.autodiff_mode = AutodiffMode.NONE
        self.kernel, self.name = kernel, kernel.func.__name__
        self._check_arguments(args)
        self._arrays = {
            parameter.name: value
            for parameter, value in zip(kernel.arguments, args, strict=True)
            if isinstance(parameter.annotation, NdarrayType) and isinstance(value, torch.Tensor)
        }
        self._uses = uses(kernel)
        self.changes, self.reads = (
            [self._arrays[name] for name in names if name in self._arrays]
            for names in (self._uses.written, self._uses.read)
        )
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._versions = {
            name: self._arrays[name]._version
            for name in self._uses.read
            if name in self._arrays and not self._arrays[name].is_inference()
        }
        self.written: list[torch.Tensor] = []
        self._check_gradients(rollouts)
        loops = runtime.current().backend == "cpu" and has_inner_loops(kernel)
        self._unsure = loops
        settings = {"ad_stack_size": runtime.current().ad_stack_size or STACK_ENTRIES} if loops else {}
        self._taken = taken_by(kernel.func, args)
        if kernel.grad is not None:
            compile_kernel(kernel, args)  # both for the program around them as it is now
            compile_kernel(kernel.grad, args, settings=settings)
            self._compare(args, settings)

    def keep(self, written: torch.Tensor) -> None:
        """Keep what an array that is about to be written holds, if the adjoint may read it."""
        for array in self.reads:
            if overlap(array, written) and not any(array is one for one, _ in self.kept):
                self.kept.append((array, array.detach().clone()))

    def grad(self, *args) -> None:
        """Launch the adjoint, on what the kernel left; with loops for the first time in a child of the process."""
        adjoint = self.kernel.grad
        if adjoint is None:
            return
        for name, version in self._versions.items():
            if self._arrays[name]._version != version:
                raise AdjointError(
                    f"Expected argument {name!r} of kernel {self.name!r} as it was until its tape ends, got one that "
                    "torch has written to since; give the kernel a copy of it."
                )
        changed = first_difference(self._taken, taken_by(self.kernel.func, args))
        if changed is not None:
            raise AdjointError(
                f"Expected {changed[0]}, which kernel {self.name!r} takes of the program, as it was until its tape "
                "ends, got another; hand it to the kernel as an argument."
            )
        for array, held in self.kept:
            array.data.copy_(held)
        key = _key(args)
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

    def _compare(self, args: Sequence, settings: Mapping[str, Any]) -> None:
        """AdjointError unless the adjoint is the derivative, in a child of the process; once for each kind of call."""
        key, seen = (*_key(args), self._taken), _compared.setdefault(self.kernel, set())
        arrays = list({id(array): array for array in self._arrays.values() if array.requires_grad}.values())
        if key in seen or not arrays or not self._binds(args) or not available():
            return
        buffers = {id(array): torch.zeros_like(array, requires_grad=False) for array in arrays}
        gradients = [buffers.get(id(value)) for value in args]
        launch = prepare_bare(self.kernel, args)
        pull_back = prepare_bare(self.kernel.grad, args, gradients, settings)
        with contextlib.suppress(Crash, Slow):  # the kernel itself may crash, and one that is slow is believed
            found = isolated(lambda: Alone(arrays, list(buffers.values()), launch, pull_back).wrong(), _SECONDS)
            if found is not None:
                name = next(name for name, value in self._arrays.items() if value is arrays[found.array])
                sentence = (
                    f"Expected the adjoint that Taichi makes of kernel {self.name!r} to be its derivative, got "
                    f"{found.analytic:.6g} for {name}{found.place} where central differences give {found.numeric:.6g}; "
                    "Taichi loses a part of it, so let it write what it reads to another array, keep loops in loops "
                    "and atomics other than += out, or make it a KernelSystem with a pull_back."
                )
                if runtime.current().precision == "float64":
                    raise AdjointError(sentence)
                # Of what jumps or turns within the rounding of an argument, differences in float32 see another slope.
                warnings.warn(sentence, EvenflowWarning, stacklevel=2)
        seen.add(key)

    def _binds(self, args: Sequence) -> bool:
        """Whether a launch can be prepared: with tensors and numbers besides what is compiled in."""
        return all(
            isinstance(parameter.annotation, ti.template) or isinstance(value, (torch.Tensor, int, float))
            for parameter, value in zip(self.kernel.arguments, args, strict=True)
        )

    def _check_arguments(self, args: Sequence) -> None:
        for parameter, value in zip(self.kernel.arguments, args, strict=True):
            name = f"argument {parameter.name!r} of kernel {self.name!r}"
            if isinstance(value, torch.Tensor) and not isinstance(parameter.annotation, ti.template):
                check_array(name, parameter.annotation, value.dim(), value.dtype)
                check_memory(name, value)
            elif isinstance(value, (str, type(None))) and not isinstance(parameter.annotation, ti.template):
                check_constant(name, parameter.annotation, value)

    def _check_gradients(self, rollouts: Sequence[Any]) -> None:
        arrays, written = self._arrays, self._uses.assigned
        if not any(value.requires_grad for value in arrays.values()):
            return
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


def _key(args: Sequence) -> tuple:
    return tuple(value if isinstance(value, int) else getattr(value, "shape", None) for value in args)


def overlap(value: torch.Tensor, states: torch.Tensor) -> bool:
    """Whether both lie in one piece of memory."""
    return value.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()

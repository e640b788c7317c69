"""Prepared launches: a Taichi kernel call whose arguments are bound once and launched many times.

The ordinary call looks every argument up again and costs 60 to 200 µs; a prepared one costs about 2 µs. It passes
raw pointers, so tensors are checked here, once, and kept alive by the launch. This is the only file that uses
Taichi's private launch path (taichi==1.7.4).
"""

import functools
from collections.abc import Callable, Sequence

import taichi as ti
import torch
from taichi.lang import impl

from engine import runtime
from engine.errors import ShapeError

_REALS = (float, ti.f16, ti.f32, ti.f64)

Launch = Callable[[], None]
"""A zero-argument callable that runs one prepared kernel or a fixed sequence of work."""


def prepare(kernel, *args) -> Launch:
    """Bind `kernel` to `args` and return a zero-argument launch.

    Args:
        kernel: a `@ti.kernel` function, or a kernel of a `@ti.data_oriented` object.
        args: for each parameter in order a contiguous torch tensor, a float, an int, or (for `ti.template()`
            parameters) any compile-time value.

    Raises:
        ShapeError: a tensor that Taichi cannot take by pointer.
    """
    return _bind(kernel, kernel._primal, args, gradients=None)


def prepare_adjoint(kernel, args: Sequence, gradients: Sequence[torch.Tensor | None]) -> Launch:
    """Bind the adjoint that Taichi's automatic differentiation makes of `kernel`.

    `gradients[i]` is the gradient buffer of tensor `args[i]` (None for the others). The launch reads and zeroes
    the gradients of what the kernel assigns, and adds to the gradients of what it reads.
    """
    return _bind(kernel, kernel._adjoint, args, gradients)


def _bind(kernel, compiled, args, gradients) -> Launch:
    owner = getattr(kernel, "_kernel_owner", None)
    offset = 0 if owner is None else 1
    for index, value in enumerate(args):
        name = compiled.arguments[index + offset].name
        if isinstance(value, torch.Tensor):
            _check(f"argument {name}", value)
        if gradients is not None and gradients[index] is not None:
            _check_gradient(name, value, gradients[index])
    lookup = list(args)
    if gradients is not None:
        lookup = [
            value.detach().requires_grad_() if gradient is not None else value
            for value, gradient in zip(args, gradients, strict=True)
        ]
    key = compiled.ensure_compiled(*([] if owner is None else [owner]), *lookup)
    kernel_cpp = compiled.compiled_kernels[key]
    program = impl.get_runtime().prog
    data = program.compile_kernel(program.config(), program.get_device_caps(), kernel_cpp)
    context = kernel_cpp.make_launch_context()
    slot = 0
    for index, value in enumerate(args):
        if isinstance(compiled.arguments[index + offset].annotation, ti.template):
            continue
        if isinstance(value, torch.Tensor):
            gradient = None if gradients is None else gradients[index]
            pointer = 0 if gradient is None else gradient.data_ptr()
            context.set_arg_external_array_with_shape(
                (slot,), value.data_ptr(), value.nbytes, tuple(value.shape), pointer
            )
        elif compiled.arguments[index + offset].annotation in _REALS:
            context.set_arg_float((slot,), float(value))
        else:
            context.set_arg_int((slot,), int(value))
        slot += 1
    launch = functools.partial(program.launch_kernel, data, context)
    launch.arguments = (args, gradients)  # type: ignore[attr-defined]  # keeps the tensors alive
    return launch


def _check(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ShapeError(f"Expected {name} to be contiguous, got strides {tensor.stride()}; call .contiguous().")
    device = runtime.current().device.type
    if tensor.device.type != device:
        raise ShapeError(f"Expected {name} on {device}, got {tensor.device.type}; call .to({device!r}).")


def _check_gradient(name: str, tensor: torch.Tensor, gradient: torch.Tensor) -> None:
    _check(f"the gradient of {name}", gradient)
    if gradient.shape != tensor.shape or gradient.dtype != tensor.dtype:
        raise ShapeError(
            f"Expected the gradient of {name} as {tensor.dtype} of shape {list(tensor.shape)}, got {gradient.dtype} "
            f"of shape {list(gradient.shape)}."
        )

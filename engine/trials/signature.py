"""What a user's kernel takes against what it is given: number, kind, dtype and shape of its arguments."""

import math
import numbers
from collections.abc import Sequence

import taichi as ti
import torch
from taichi.lang.matrix import MatrixType
from taichi.lang.util import to_taichi_type
from taichi.types.ndarray_type import NdarrayType

from engine import runtime
from engine.errors import SettingError, ShapeError

_REALS = (float, ti.f16, ti.f32, ti.f64)
_INTEGER_BITS = {int: 31, ti.i8: 7, ti.i16: 15, ti.i32: 31, ti.i64: 63}
_UNSIGNED_BITS = {ti.u8: 8, ti.u16: 16, ti.u32: 32, ti.u64: 64}


def check_kernel(kernel, role: str, owner: str, arrays: Sequence[tuple[str, int]], constants: Sequence) -> None:
    """Raise unless `kernel` can be called with these arrays and then these constants.

    Args:
        kernel: what the user gave as a `@ti.kernel`.
        role: step or pull_back.
        owner: the system's name.
        arrays: name and number of dimensions of each array that comes first.
        constants: what comes after them.

    Raises:
        SettingError: no kernel, or constants that do not fit its parameters.
        ShapeError: arrays annotated with another dtype or number of dimensions.
    """
    if not hasattr(kernel, "_primal") or not hasattr(kernel, "_adjoint"):
        raise SettingError(f"Expected {role} of system {owner!r} as a @ti.kernel function, got {kernel!r}.")
    name = f"{role} kernel {kernel._primal.func.__name__!r} of system {owner!r}"
    parameters = kernel._primal.arguments[0 if getattr(kernel, "_kernel_owner", None) is None else 1 :]
    if len(parameters) < len(arrays):
        raise SettingError(
            f"Expected {name} to take {', '.join(array for array, _ in arrays)} and then its constants, got a kernel "
            f"of {len(parameters)} parameters."
        )
    wanted = parameters[len(arrays) :]
    if len(wanted) != len(constants):
        named = f" ({', '.join(parameter.name for parameter in wanted)})" if wanted else ""
        raise SettingError(
            f"Expected {len(wanted)} constants{named} for {name}, got {len(constants)}; give one for each parameter "
            f"after its {len(arrays)} arrays."
        )
    for parameter, (array, dimensions) in zip(parameters, arrays, strict=False):
        check_array(f"parameter {parameter.name!r} ({array}) of {name}", parameter.annotation, dimensions)
    for parameter, value in zip(wanted, constants, strict=True):
        check_constant(f"constant {parameter.name!r} of {name}", parameter.annotation, value)


def check_array(name: str, annotation, dimensions: int, dtype: torch.dtype | None = None) -> None:
    """Raise ShapeError unless a parameter takes arrays of so many dimensions and this dtype (the runtime's)."""
    if not isinstance(annotation, NdarrayType):
        raise ShapeError(f"Expected {name} annotated as ti.types.ndarray(ndim={dimensions}), got {_words(annotation)}.")
    inner = isinstance(annotation.dtype, MatrixType)
    given = dimensions - (annotation.dtype.ndim if inner else 0)
    if annotation.ndim is not None and annotation.ndim != given:
        raise ShapeError(f"Expected {name} annotated with ndim={given}, got ndim={annotation.ndim}.")
    scalar = annotation.dtype.dtype if inner else annotation.dtype
    dtype = runtime.current().dtype if dtype is None else dtype
    if scalar is not None and _cooked(scalar) != to_taichi_type(dtype):
        raise ShapeError(
            f"Expected {name} annotated without a dtype or as {to_taichi_type(dtype).to_string()}, got "
            f"{_words(scalar)}; leave the dtype out, so that the kernel follows the runtime's precision."
        )


def check_constant(name: str, annotation, value) -> None:
    """Raise SettingError or ShapeError unless `value` is what a kernel's parameter of this annotation takes."""
    if isinstance(annotation, ti.template):
        return
    if isinstance(annotation, NdarrayType):
        if not isinstance(value, torch.Tensor):
            raise SettingError(f"Expected {name} as a torch tensor, got {_kind(value)}.")
        check_array(name, annotation, value.dim(), value.dtype)
    elif annotation in _REALS:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise SettingError(f"Expected {name} as a float, got {_kind(value)}.")
        if math.isnan(float(value)):
            raise SettingError(f"Expected {name} as a number, got nan.")
    elif annotation in _INTEGER_BITS or annotation in _UNSIGNED_BITS:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise SettingError(f"Expected {name} as an int, got {_kind(value)}.")
        signed = annotation in _INTEGER_BITS
        bits = (_INTEGER_BITS if signed else _UNSIGNED_BITS)[annotation]
        if not (-(2**bits) if signed else 0) <= int(value) < 2**bits:
            raise SettingError(f"Expected {name} within {_words(annotation)}, got {value}.")
    else:
        raise SettingError(
            f"Expected {name} annotated as float, int, ti.types.ndarray or ti.template, got {_words(annotation)}."
        )


def _cooked(dtype):
    program = {float: ti.lang.impl.get_runtime().default_fp, int: ti.lang.impl.get_runtime().default_ip}
    return program.get(dtype, dtype)


def _kind(value) -> str:
    return repr(value) if isinstance(value, (str, int, float, complex, type(None))) else type(value).__name__


def _words(annotation) -> str:
    return (
        annotation.to_string() if hasattr(annotation, "to_string") else getattr(annotation, "__name__", str(annotation))
    )

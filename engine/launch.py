"""Prepared launches: a Taichi kernel call whose arguments are bound once and launched many times.

The ordinary call looks every argument up again and costs 60 to 200 µs; a prepared one costs about 2 µs, on CUDA the
host's 7 µs more that new arguments take. It passes raw pointers, so tensors are checked here, once, and kept alive by
the launch. This is the only file that uses Taichi's private launch path (taichi==1.7.4).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import taichi as ti
import torch
from taichi._lib import core as _core
from taichi.lang import impl
from taichi.lang.enums import AutodiffMode
from taichi.lang.matrix import MatrixType

from engine import runtime
from engine.captured import taken_by
from engine.errors import AdjointError, BackendError, KernelError, ShapeError, no_room
from engine.plan import MOST_ELEMENTS
from engine.sharing import compiled_for
from engine.trials.loops import undifferentiable

_REALS = (float, ti.f16, ti.f32, ti.f64)

Launch = Callable[[], None]
"""A zero-argument callable that runs one prepared kernel or a fixed sequence of work."""


def prepare(kernel, *args, owner: str = "", settings: Mapping[str, Any] | None = None) -> Launch:
    """Bind `kernel` to `args` and return a zero-argument launch.

    Args:
        kernel: a `@ti.kernel` function, or a kernel of a `@ti.data_oriented` object.
        args: for each parameter in order a contiguous torch tensor, a float, an int, or (for `ti.template()`
            parameters) any compile-time value.
        owner: what errors say after the kernel's name, such as " of system 'x'".
        settings: Taichi's compile settings for this kernel alone, such as `check_out_of_bound`.

    Raises:
        ShapeError: a tensor that Taichi cannot take by pointer.
        KernelError: a kernel that Taichi cannot compile.
    """
    return _bind(kernel, kernel._primal, args, None, owner, settings or {})


def prepare_adjoint(
    kernel,
    args: Sequence,
    gradients: Sequence[torch.Tensor | None],
    owner: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Launch:
    """Bind the adjoint that Taichi's automatic differentiation makes of `kernel`.

    `gradients[i]` is the gradient buffer of tensor `args[i]` (None for the others). The launch reads and zeroes
    the gradients of what the kernel assigns, and adds to the gradients of what it reads. The setting `ad_stack_size`
    is the number of entries for each local that loops overwrite.

    Raises:
        AdjointError: a kernel that Taichi cannot differentiate.
    """
    return _bind(kernel, kernel._adjoint, args, gradients, owner, settings or {})


def prepare_bare(
    compiled,
    args: Sequence,
    gradients: Sequence[torch.Tensor | None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Launch:
    """The same of one of Taichi's `Kernel` objects, or of an adjoint's; what owns it is the first argument."""
    return _bind(compiled, compiled, args, gradients, "", settings or {})


def compile_kernel(compiled, arguments: Sequence, owner: str = "", settings: Mapping[str, Any] | None = None):
    """Compile one of Taichi's `Kernel` objects for `arguments`; returns its C++ kernel and what a launch needs of it.

    Kernels of other settings are kept beside each other; the one compiled last is what Taichi's own call takes.
    """
    program, settings = impl.get_runtime().prog, settings or {}
    config, kernels = program.config(), compiled.compiled_kernels
    taken = taken_by(compiled.func, arguments)
    # What this pass removes the backends' compilers remove too, in a fraction of the time, and it is not to be trusted:
    # of a vector that a loop sums up in a function it may drop a store. Derivatives need it.
    passes = {"cfg_optimization": compiled.autodiff_mode != AutodiffMode.NONE}
    before = {name: getattr(config, name) for name in (*settings, *passes)}
    _core.set_logging_level("critical")  # what Taichi refuses is said by the error, once
    try:
        for name, value in (passes | dict(settings)).items():
            setattr(config, name, value)
        known = len(kernels)
        key = compiled.ensure_compiled(*arguments)
        # Taichi's cache looks neither at settings nor at the program around a kernel that it has seen.
        variant = (key, *sorted(settings.items()), *taken)
        if len(kernels) == known and kernels.get(variant) is not kernels[key]:
            kernels[key] = kernels.get(variant) or _compiled_anew(compiled, key, arguments)
        kernels[variant] = kernel_cpp = kernels[key]
        return kernel_cpp, program.compile_kernel(config, program.get_device_caps(), kernel_cpp)
    except Exception as error:  # Taichi raises a dozen kinds
        raise _refusal(compiled, owner, error) from error
    finally:
        _core.set_logging_level("error")
        for name, value in before.items():
            setattr(config, name, value)


def _compiled_anew(compiled, key, arguments):
    del compiled.compiled_kernels[key]
    compiled.ensure_compiled(*arguments)
    return compiled.compiled_kernels[key]


def _refusal(compiled, owner: str, error: Exception) -> KernelError | AdjointError:
    """What a user reads instead of Taichi's traceback, whose last line says what is wrong."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", str(error)).splitlines() if line.strip()]
    place = next((found.group(1) for line in lines if (found := re.search(r"line (\d+), in ", line))), None)
    reason = re.sub(r"^\[[^\]]*\.cpp:[^\]]*\]\s*", "", lines[-1]).rstrip(".") if lines else type(error).__name__
    what = f"kernel {compiled.func.__name__!r}{owner}"
    where = f"{reason!r}" + (f" at line {place} of its file" if place else "")
    if compiled.autodiff_mode == AutodiffMode.NONE:
        return KernelError(f"Expected {what} to compile, got from Taichi {where}; mend the kernel.")
    return AdjointError(
        f"Expected {what} to be differentiable by Taichi, got {undifferentiable(compiled) or where}; use branches and "
        "`for` loops for `continue`, `break` and `while`, keep ti.random, ti.round and ti.tan out, or "
        f"{'write the adjoint as a pull_back kernel' if owner else 'keep the kernel out of the tape'}."
    )


def _bind(kernel, compiled, args, gradients, owner, settings) -> Launch:
    kernel_owner = getattr(kernel, "_kernel_owner", None)
    owners = [] if kernel_owner is None else [compiled_for(kernel_owner)]
    parameters = compiled.arguments[len(owners) :]
    if len(parameters) != len(args):
        raise KernelError(
            f"Expected {len(parameters)} arguments for kernel {compiled.func.__name__!r}{owner}, got {len(args)}."
        )
    for index, value in enumerate(args):
        name = parameters[index].name
        if isinstance(value, torch.Tensor):
            check_memory(f"argument {name}", value)
        if gradients is not None and gradients[index] is not None:
            _check_gradient(name, value, gradients[index])
    # Taichi compiles anew for tensors that require a gradient, which matters to its own adjoints alone.
    lookup = [value.detach() if isinstance(value, torch.Tensor) else value for value in args]
    if gradients is not None:
        lookup = [
            value.requires_grad_() if gradient is not None else value
            for value, gradient in zip(lookup, gradients, strict=True)
        ]
    kernel_cpp, data = compile_kernel(compiled, [*owners, *lookup], owner, settings)
    contexts = functools.partial(_context, kernel_cpp, _setters(parameters, args, gradients))
    submit = functools.partial(impl.get_runtime().prog.launch_kernel, data)
    if runtime.current().backend == "cuda":
        launch = _on_cuda(submit, contexts, f"kernel {compiled.func.__name__!r}{owner}")
    else:
        launch = functools.partial(submit, contexts())
    if runtime.current().debug:
        launch = _reporting(launch, compiled.func.__name__, owner, [parameter.name for parameter in parameters])
    launch.arguments = (args, gradients)  # type: ignore[attr-defined]  # keeps the tensors alive
    return launch


def _setters(parameters, args, gradients) -> list[tuple[str, tuple]]:
    """For each argument of a launch the method of its context that sets it, and what with."""
    setters: list[tuple[str, tuple]] = []
    for index, value in enumerate(args):
        annotation, slot = parameters[index].annotation, (len(setters),)
        if isinstance(annotation, ti.template):
            continue
        if isinstance(value, torch.Tensor):
            gradient = None if gradients is None else gradients[index]
            pointer = 0 if gradient is None else gradient.data_ptr()
            array = value.data_ptr(), value.nbytes, _indexed_shape(annotation, value), pointer
            setters.append(("set_arg_external_array_with_shape", (slot, *array)))
        elif annotation in _REALS:
            setters.append(("set_arg_float", (slot, float(value))))
        else:
            setters.append(("set_arg_int", (slot, int(value))))
    return setters


def _context(kernel_cpp, setters: list[tuple[str, tuple]]):
    context = kernel_cpp.make_launch_context()
    for method, values in setters:
        getattr(context, method)(*values)
    return context


def _on_cuda(submit: Callable[[Any], None], contexts: Callable[[], Any], what: str) -> Launch:
    """A launch with a new context each time: Taichi's launcher leaves the address of freed memory in one it has used.

    Where a context is used again its next launch writes there, and the process dies.
    """
    here = runtime.current()

    def launch() -> None:
        here.check_stream()
        try:
            submit(contexts())
        except RuntimeError as error:
            raise BackendError(failure(str(error), what)) from error

    return launch


def failure(message: str, what: str) -> str:
    """The sentence for what CUDA says of a launch that it did not make."""
    if "OUT_OF_MEMORY" in message or "out of memory" in message:
        return no_room(what)
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["a failure"]
    return (
        f"Expected {what} to run on the device, got {lines[0].rstrip('.')!r}; start another process, since this one "
        "cannot use the device any more."
    )


def _indexed_shape(annotation, tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape without the axes of the vectors or matrices that an array is annotated to consist of."""
    dtype = getattr(annotation, "dtype", None)
    return tuple(tensor.shape[: tensor.dim() - dtype.ndim] if isinstance(dtype, MatrixType) else tensor.shape)


def _reporting(launch: Launch, name: str, owner: str, parameters: list[str]) -> Launch:
    """A launch under `init(debug=True)`, where Taichi reports accesses outside of arrays."""

    def checked() -> None:
        try:
            launch()
        except BackendError:
            raise
        except Exception as error:
            raise KernelError(outside(str(error), name, owner, parameters)) from error

    checked.__wrapped__ = launch  # type: ignore[attr-defined]
    return checked


def outside(message: str, name: str, owner: str, parameters: Sequence[str]) -> str:
    """The sentence for Taichi's report of an access outside of an array or a field."""
    found = re.search(r"Out of bound access to ndarray at arg (\d+) with indices (\[[^\]]*\])", message)
    what = f"kernel {name!r}{owner} to stay inside its arrays"
    if found is not None and int(found.group(1)) < len(parameters):
        return f"Expected {what}, got an access to {parameters[int(found.group(1))]} at {found.group(2)}."
    lines = [line for line in message.splitlines() if line.strip()]
    return f"Expected {what}, got {lines[0].strip() if lines else 'a failure'!r}."


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Raise ShapeError unless a kernel can take `tensor` by pointer."""
    if tensor.numel() > MOST_ELEMENTS:
        raise ShapeError(
            f"Expected {name} with at most {MOST_ELEMENTS} elements, which is what kernels can index, got "
            f"{tensor.numel()}; lower the batch or the horizon."
        )
    if not tensor.is_contiguous():
        raise ShapeError(f"Expected {name} to be contiguous, got strides {tensor.stride()}; call .contiguous().")
    device = runtime.current().device
    if tensor.device != device:
        raise ShapeError(f"Expected {name} on {device}, got {tensor.device}; call .to({str(device)!r}).")


def _check_gradient(name: str, tensor: torch.Tensor, gradient: torch.Tensor) -> None:
    check_memory(f"the gradient of {name}", gradient)
    if gradient.shape != tensor.shape or gradient.dtype != tensor.dtype:
        raise ShapeError(
            f"Expected the gradient of {name} as {tensor.dtype} of shape {list(tensor.shape)}, got {gradient.dtype} "
            f"of shape {list(gradient.shape)}."
        )

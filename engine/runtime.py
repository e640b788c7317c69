"""The runtime: the process's only `ti.init`, and what follows from it.

Taichi compiles constants in the default precision and keeps one program per process, so backend and
precision are chosen once, by `init`, before the first system is built.
"""

import contextlib
import io
import os
from dataclasses import dataclass

import taichi as ti
import torch
from taichi._lib import core as _core

from engine.checks import whole
from engine.errors import BackendError, SettingError, ShapeError

BACKENDS = ("cpu", "cuda", "vulkan")
PRECISIONS = ("float32", "float64")
_MOST_THREADS = 64
_ARCHITECTURES = {"cpu": ti.cpu, "cuda": ti.cuda, "vulkan": ti.vulkan}
_DTYPES = {"float32": (torch.float32, ti.f32), "float64": (torch.float64, ti.f64)}


@dataclass(frozen=True)
class Runtime:
    """What `init` decided.

    Attributes:
        backend: "cpu", "cuda" or "vulkan".
        precision: "float32" or "float64".
        threads: CPU threads given to torch and to Taichi each.
        device: the torch device that every tensor lives on (the CPU unless the backend is CUDA).
        dtype: the torch dtype of every state, control, adjoint and parameter.
        note: why `auto` chose as it did, else empty.
    """

    backend: str
    precision: str
    threads: int
    device: torch.device
    dtype: torch.dtype
    note: str = ""

    def check(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return `tensor` if it has this shape and the runtime's dtype and device, else raise ShapeError."""
        if not isinstance(tensor, torch.Tensor):
            raise ShapeError(
                f"Expected {name} to be a torch tensor of shape {list(shape)}, got {type(tensor).__name__}."
            )
        if tuple(tensor.shape) != tuple(shape):
            raise ShapeError(f"Expected {name} of shape {list(shape)}, got {list(tensor.shape)}.")
        if tensor.dtype != self.dtype:
            raise ShapeError(
                f"Expected {name} as {self.dtype}, the runtime's precision, got {tensor.dtype}; convert it with .to()."
            )
        if tensor.device.type != self.device.type:
            raise ShapeError(
                f"Expected {name} on {self.device.type}, where backend {self.backend} works, got {tensor.device.type}."
            )
        return tensor


_current: Runtime | None = None


def init(
    backend: str = "auto", precision: str = "float32", threads: int | None = None, fast_math: bool = False
) -> Runtime:
    """Start Taichi, once per process, and verify that it started as asked.

    Args:
        backend: "cpu", "cuda", "vulkan", or "auto": CUDA where both Taichi and torch have it, else the CPU.
        precision: "float32" or "float64".
        threads: CPU threads for torch and Taichi each; None takes every core this process may use.
        fast_math: let the compiler reorder floating-point sums.

    Raises:
        BackendError: the backend is not there, or the process already runs with other settings.
        SettingError: a name or number that does not exist.
    """
    global _current
    if backend not in ("auto", *BACKENDS):
        raise SettingError(f"Expected a backend among auto, {', '.join(BACKENDS)}, got {backend!r}.")
    if precision not in PRECISIONS:
        raise SettingError(f"Expected a precision among {', '.join(PRECISIONS)}, got {precision!r}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = cores if threads is None else whole("at least 1 thread", threads)
    most = max(_MOST_THREADS, 4 * cores)
    if threads > most:
        raise SettingError(f"Expected at most {most} threads on the {cores} cores of this machine, got {threads}.")

    if _current is not None:
        if backend in ("auto", _current.backend) and precision == _current.precision:
            return _current
        raise BackendError(
            f"Expected one backend and precision per process, but {_current.backend} {_current.precision} is "
            f"running and {backend} {precision} was asked for; start another process."
        )

    there = available_backends()
    chosen, note = backend, ""
    if backend == "auto":
        chosen = "cuda" if "cuda" in there else "cpu"
        note = "" if chosen == "cuda" else "no CUDA device that Taichi and torch share, so the CPU"
    if chosen not in there:
        raise BackendError(
            f"Expected a backend that this machine has ({', '.join(there)}), got {chosen!r}, which is not available."
        )
    torch_dtype, taichi_dtype = _DTYPES[precision]
    with contextlib.redirect_stdout(io.StringIO()):
        ti.init(
            arch=_ARCHITECTURES[chosen],
            default_fp=taichi_dtype,
            fast_math=fast_math,
            cpu_max_num_threads=threads,
            log_level=ti.ERROR,
            enable_fallback=False,
        )
    started = _backend_name(ti.cfg.arch)
    if started != chosen:
        ti.reset()
        raise BackendError(f"Expected Taichi to start on {chosen}, but it started on {started}.")
    torch.set_num_threads(threads)
    device = torch.device("cuda" if chosen == "cuda" else "cpu")
    _current = Runtime(chosen, precision, threads, device, torch_dtype, note)
    return _current


def current() -> Runtime:
    """The running runtime; BackendError if `init` was not called."""
    if _current is None:
        raise BackendError("Expected init() before the first system, got a process without a runtime; call ef.init().")
    return _current


def available_backends() -> tuple[str, ...]:
    """The backends this machine can start, found without starting one."""
    _core.set_logging_level("error")
    there = ["cpu"]
    if _core.with_cuda() and torch.cuda.is_available():
        there.append("cuda")
    if _core.with_vulkan():
        there.append("vulkan")
    return tuple(there)


def _backend_name(arch) -> str:
    return {ti.cuda: "cuda", ti.vulkan: "vulkan"}.get(arch, "cpu")

"""The runtime: the process's only `ti.init`, and what follows from it.

Taichi compiles constants in the default precision and keeps one program per process, so backend and
precision are chosen once, by `init`, before the first system is built.
"""

import contextlib
import ctypes
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import taichi as ti
import torch
from taichi._lib import core as _core

from engine.checks import whole
from engine.errors import BackendError, SettingError, ShapeError
from engine.start import NEEDS, silenced

BACKENDS = ("cpu", "cuda", "vulkan")
PRECISIONS = ("float32", "float64")
_MOST_THREADS = 64
_ARCHITECTURES = {"cpu": ti.cpu, "cuda": ti.cuda, "vulkan": ti.vulkan}
# Reverse mode keeps overwritten locals on the stack of the thread that runs the kernel; only what is used takes memory.
_THREAD_STACK, _ALL_THREAD_STACKS, _LEAST_THREAD_STACK = 2**28, 2**33, 2**23
# What torch leaves of a CUDA device to Taichi's kernels and what their launches take for a moment.
_LAUNCHES_BYTES = 2**29
# Blocks of 128 threads, of which a processor of a CUDA device runs so many at once, and the largest that kernels use.
_BLOCKS_A_PROCESSOR, _BLOCK = 16, 256
_DTYPES = {"float32": (torch.float32, ti.f32), "float64": (torch.float64, ti.f64)}


@dataclass(frozen=True)
class Runtime:
    """What `init` decided.

    Attributes:
        backend: "cpu", "cuda" or "vulkan".
        precision: "float32" or "float64".
        threads: CPU threads given to torch and to Taichi each.
        device: the torch device that every tensor lives on (the CPU unless the backend is CUDA, where Taichi works on
            device 0 alone).
        dtype: the torch dtype of every state, control, adjoint and parameter.
        note: why `auto` chose as it did, else empty.
        fast_math, debug, ad_stack_size: as `init` took them.
        thread_stack: bytes of stack that each of Taichi's CPU threads has; 0 where it is the system's default.
    """

    backend: str
    precision: str
    threads: int
    device: torch.device
    dtype: torch.dtype
    note: str = ""
    fast_math: bool = False
    debug: bool = False
    ad_stack_size: int | None = None
    thread_stack: int = 0

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
        if tensor.device != self.device:
            raise ShapeError(
                f"Expected {name} on {self.device}, where backend {self.backend} works, got {tensor.device}."
            )
        return tensor

    def check_stream(self) -> None:
        """BackendError on CUDA unless torch works on its default stream, on which Taichi launches whatever torch does.

        Beside another stream kernels would run in no order, and graphs, which torch captures on one, would lack them.
        """
        if self.backend != "cuda" or torch.cuda.current_stream(self.device).cuda_stream == 0:
            return
        what = "a graph that is captured" if torch.cuda.is_current_stream_capturing() else "another stream"
        raise BackendError(
            f"Expected torch's default stream, on which Taichi's kernels run, got {what}; leave torch.cuda.stream(...) "
            "and torch.cuda.graph(...) before rollouts, sweeps and steps."
        )


_current: Runtime | None = None


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def init(
    backend: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    fast_math: bool | None = None,
    debug: bool | None = None,
    ad_stack_size: int | None = None,
) -> Runtime:
    """Start Taichi, once per process, and verify that it started as asked.

    Args:
        backend: "cpu", "cuda", "vulkan", or "auto": CUDA where both Taichi and torch have it, else the CPU.
        precision: "float32" or "float64".
        threads: CPU threads for torch and Taichi each; None takes every core this process may use.
        fast_math: let the compiler reorder floating-point sums; off by default. On CUDA Taichi 1.7.4 always lets it,
            and takes products and sums together, so that bits differ from the CPU's.
        debug: check every array access of every kernel, at several times the cost; off by default.
        ad_stack_size: entries of the stacks on which Taichi's automatic differentiation keeps the values of a local
            that a loop overwrites, one for each time that one sample overwrites it. By default the CPU sizes them to
            the kernel, and CUDA, where they cost memory for every thread, takes Taichi's own, about 32.

    Raises:
        BackendError: the backend is not there, or the process already runs with other settings.
        SettingError: a name or number that does not exist.
    """
    global _current
    asked = {"threads": threads, "fast_math": fast_math, "debug": debug, "ad_stack_size": ad_stack_size}
    _check_asked(backend, precision, asked, cores())
    if _current is not None:
        return _as_running(_current, backend, precision, asked)
    chosen, note = _choose(backend)
    threads = cores() if threads is None else threads
    with contextlib.redirect_stdout(io.StringIO()), _thread_stacks(threads) as thread_stack:
        _start_taichi(chosen, precision, threads, bool(fast_math), bool(debug), ad_stack_size)
    torch.set_num_threads(threads)
    device = torch.device("cuda", 0) if chosen == "cuda" else torch.device("cpu")
    if chosen == "cuda":
        _leave_room(device)
    _current = Runtime(
        chosen, precision, threads, device, _DTYPES[precision][0], note, bool(fast_math), bool(debug), ad_stack_size,
        thread_stack,
    )  # fmt: skip
    return _current


def _start_taichi(
    backend: str, precision: str, threads: int, fast_math: bool, debug: bool, ad_stack_size: int | None
) -> None:
    ti.init(
        arch=_ARCHITECTURES[backend],
        default_fp=_DTYPES[precision][1],
        fast_math=fast_math,
        debug=debug,
        ad_stack_size=ad_stack_size or 0,
        cpu_max_num_threads=threads,
        unrolling_limit=0,  # no warning of long loops: what is unrolled here is so on purpose
        log_level=ti.ERROR,
        enable_fallback=False,
        **(_grid() if backend == "cuda" else {}),
    )
    started = _backend_name(ti.cfg.arch)
    if started != backend:
        ti.reset()
        raise BackendError(f"Expected Taichi to start on {backend}, but it started on {started}.")


def _grid() -> dict[str, Any]:
    """The largest grid of a kernel, which fills the device, and the largest block.

    Taichi keeps the state of a random generator for each thread of such a grid: 173 MB by its own choice of them.
    """
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    return {"saturating_grid_dim": _BLOCKS_A_PROCESSOR * processors, "max_block_dim": _BLOCK}


def _leave_room(device: torch.device) -> None:
    """Keep torch, which holds what it frees, from taking all of a device: every launch asks it for a little."""
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(max(0.5, 1.0 - _LAUNCHES_BYTES / total), device)


def _check_asked(backend: str, precision: str, asked: dict, cores: int) -> None:
    """SettingError for a name or number that does not exist."""
    if backend not in ("auto", *BACKENDS):
        raise SettingError(f"Expected a backend among auto, {', '.join(BACKENDS)}, got {backend!r}.")
    if precision not in PRECISIONS:
        raise SettingError(f"Expected a precision among {', '.join(PRECISIONS)}, got {precision!r}.")
    threads, most = asked["threads"], max(_MOST_THREADS, 4 * cores)
    if threads is not None and whole("at least 1 thread", threads) > most:
        raise SettingError(f"Expected at most {most} threads on the {cores} cores of this machine, got {threads}.")
    if asked["ad_stack_size"] is not None:
        whole("at least 1 entry of the autodiff stacks", asked["ad_stack_size"])
    for name in ("fast_math", "debug"):
        if asked[name] not in (None, True, False):
            raise SettingError(f"Expected {name} as True or False, got {asked[name]!r}.")


def _choose(backend: str) -> tuple[str, str]:
    """The backend that was asked for, or the best for "auto"; and a note of why it is no better."""
    there = available_backends()
    chosen, note = backend, ""
    if backend == "auto":
        chosen = "cuda" if "cuda" in there else "cpu"
        note = "" if chosen == "cuda" else "no CUDA device that Taichi and torch share, so the CPU"
    if chosen not in there:
        raise BackendError(
            f"Expected a backend that this machine has ({', '.join(there)}), got {chosen!r}, which needs "
            f"{NEEDS[chosen]}."
        )
    return chosen, note


def _as_running(running: Runtime, backend: str, precision: str, asked: dict) -> Runtime:
    """The running runtime, if it is what was asked for; what was not mentioned may be as it is."""
    if backend not in ("auto", running.backend) or precision != running.precision:
        raise BackendError(
            f"Expected one backend and precision per process, but {running.backend} {running.precision} is "
            f"running and {backend} {precision} was asked for; start another process."
        )
    for name, value in asked.items():
        if value is not None and value != getattr(running, name):
            raise BackendError(
                f"Expected one setting of {name} per process, but {getattr(running, name)} is running and {value} was "
                "asked for; start another process."
            )
    return running


@contextlib.contextmanager
def _thread_stacks(threads: int) -> Iterator[int]:
    """Give threads that start meanwhile large stacks where the C library can; yields their bytes, 0 where it cannot."""
    size = max(_LEAST_THREAD_STACK, min(_THREAD_STACK, _ALL_THREAD_STACKS // threads))
    library = ctypes.CDLL(None) if os.name == "posix" else None
    attributes, before = ctypes.create_string_buffer(256), ctypes.c_size_t()
    if library is None or not hasattr(library, "pthread_setattr_default_np"):
        yield 0
        return
    library.pthread_getattr_default_np(attributes)
    library.pthread_attr_getstacksize(attributes, ctypes.byref(before))
    library.pthread_attr_setstacksize(attributes, ctypes.c_size_t(size))
    library.pthread_setattr_default_np(attributes)
    try:
        yield size
    finally:
        library.pthread_attr_setstacksize(attributes, before)
        library.pthread_setattr_default_np(attributes)


def current() -> Runtime:
    """The running runtime; BackendError if `init` was not called."""
    if _current is None:
        raise BackendError("Expected init() before the first system, got a process without a runtime; call ef.init().")
    return _current


def synchronise() -> None:
    """Wait until the device has done all that it was given; kernels and torch's work on it return before they end."""
    ti.sync()
    if current().device.type == "cuda":
        torch.cuda.synchronize(current().device)


def device_in_use() -> torch.device:
    """Where this process computes: the CPU before `init`."""
    return torch.device("cpu") if _current is None else _current.device


def available_backends() -> tuple[str, ...]:
    """The backends this machine can start, found without starting one."""
    _core.set_logging_level("error")
    there = ["cpu"]
    if _core.with_cuda() and torch.cuda.is_available():
        there.append("cuda")
    with silenced():
        if _core.with_vulkan():
            there.append("vulkan")
    return tuple(there)


def _backend_name(arch) -> str:
    return {ti.cuda: "cuda", ti.vulkan: "vulkan"}.get(arch, "cpu")

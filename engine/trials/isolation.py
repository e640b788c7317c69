"""Running launches in a forked child, so that what they crash or overwrite is not this process.

Taichi hands parallel loops to threads of its own, which a fork does not copy: a launch in a child would wait for them
for ever. The runtime that Taichi compiled calls them through a pointer; the child, and only the child, points it at
the function `_serial` below, which runs the loop in one thread with as much stack as Taichi's threads have.
"""

import ctypes
import faulthandler
import functools
import os
import pickle
import re
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import taichi as ti
import torch

from engine import errors, runtime
from engine.launch import prepare

Result = TypeVar("Result")
# Where taichi==1.7.4 keeps what is needed, in bytes: the launch context of a builder, the runtime of a launch context,
# the function in a runtime that runs a parallel loop. `_loop_pointer` believes none of it unseen.
_CONTEXT_OF_BUILDER, _RUNTIME_OF_CONTEXT, _LOOP_OF_RUNTIME = 16, 8, 8288
_RUN_LOOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_RUN_PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)


class Crash(Exception):  # noqa: N818  # an outcome, seen by callers only
    """The child was killed by a signal."""


class Slow(Exception):  # noqa: N818
    """The child took too long and was ended."""

    def __init__(self, seconds: float):
        super().__init__(seconds)
        self.seconds = seconds


def isolated(work: Callable[[], Result], seconds: float = 120.0) -> Result:
    """The result of `work`, run in a child of this process where that can be, else here.

    What `work` writes stays in the child. An EvenflowError is raised here as it was there; warnings are passed on.

    Raises:
        Crash: the child died of a signal.
        Slow: it took more than `seconds`.
    """
    if not available():
        return work()
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Of forks beside threads, Python's and JAX's: the child asks nothing of them.
        for category in (DeprecationWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(work, writing)
    os.close(writing)
    try:
        answer = _read(reading, seconds)
    finally:
        os.close(reading)
        status = _reap(child)
    if answer is None:
        raise Crash(signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit code {status >> 8}")
    kind, content, noted = pickle.loads(answer)
    for message, category in noted:
        warnings.warn(message, category, stacklevel=2)
    if kind == "error":
        raise content[0](content[1])
    if kind == "failure":
        raise RuntimeError(content)
    return content


def available() -> bool:
    """Whether a child can run launches: on Linux, on the CPU."""
    return runtime.current().backend == "cpu" and _loop_pointer() is not None


def _answer(work: Callable, pipe: int) -> None:
    """In the child: run `work`, write what came of it, and leave without a trace."""
    code = 1
    try:
        faulthandler.disable()
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        torch.set_num_threads(1)
        threading.stack_size(runtime.current().thread_stack)
        pointer = _loop_pointer()
        assert pointer is not None
        ctypes.c_uint64.from_address(pointer).value = ctypes.cast(_serial, ctypes.c_void_p).value or 0
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                answer = ("result", work())
            except errors.EvenflowError as error:
                answer = ("error", (type(error), str(error)))
            except Exception as error:
                answer = ("failure", f"{type(error).__name__}: {error}")
        kept = [(str(w.message), w.category) for w in noted if issubclass(w.category, errors.EvenflowWarning)]
        with os.fdopen(pipe, "wb") as file:
            pickle.dump((*answer, kept), file)
        code = 0
    finally:
        os._exit(code)


@_RUN_LOOP
def _serial(pool, parts, threads, context, function):
    part = _RUN_PART(function)

    def run() -> None:
        for index in range(parts):
            part(context, 0, index)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def _read(pipe: int, seconds: float) -> bytes | None:
    """All that the child writes, or None if it dies first."""
    content, deadline = b"", time.monotonic() + seconds
    while True:
        if time.monotonic() > deadline:
            raise Slow(seconds)
        if not select.select([pipe], [], [], min(60.0, max(0.0, deadline - time.monotonic())))[0]:
            continue
        part = os.read(pipe, 2**16)
        if not part:
            return content or None
        content += part


def _reap(child: int) -> int:
    """End the child if it still runs; its status."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return status


@ti.kernel
def _touch(array: ti.types.ndarray(ndim=1)):
    array[0] = 1.0


@functools.cache
def _loop_pointer() -> int | None:
    """The address of the runtime's pointer to the function that runs parallel loops, or None where it is not found."""
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32 or not runtime.current().thread_stack:
        return None
    launch = prepare(_touch, torch.zeros(1, dtype=runtime.current().dtype))
    launch = getattr(launch, "__wrapped__", launch)
    launch()
    context = launch.args[1]  # pyright: ignore[reportAttributeAccessIssue]
    pages = _pages()
    address = id(context) + object.__basicsize__
    for offset in (0, _CONTEXT_OF_BUILDER, _RUNTIME_OF_CONTEXT):
        address = _word(address, pages, offset)
        if address is None:
            return None
    pointer = address + _LOOP_OF_RUNTIME
    function = _word(address, pages, _LOOP_OF_RUNTIME)
    library = next(
        (name for start, stop, mode, name in pages if function and start <= function < stop and "x" in mode), ""
    )
    return pointer if Path(library).name.startswith("taichi_python") else None


def _word(address: int, pages: list, offset: int) -> int | None:
    """The pointer at `address + offset`, or None where no memory is mapped."""
    if not any(start <= address + offset < stop - 8 and "r" in mode for start, stop, mode, _ in pages):
        return None
    return ctypes.c_uint64.from_address(address + offset).value


def _pages() -> list[tuple[int, int, str, str]]:
    """(start, stop, mode, file) of the memory that this process has mapped."""
    content = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    lines = (re.match(r"(\w+)-(\w+) (\S+) \S+ \S+ \S+\s*(.*)", line) for line in content.splitlines())
    return [(int(a, 16), int(b, 16), mode, name) for a, b, mode, name in (line.groups() for line in lines if line)]

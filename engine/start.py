"""Taichi as it is loaded: what it needs of the machine, and compiled kernels that outlive the process."""

import atexit
import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from textwrap import TextWrapper

from engine.errors import LibraryError

if sys.platform == "linux":
    try:
        ctypes.CDLL("libX11.so.6")
    except OSError as error:
        raise LibraryError(
            f"Expected libX11, which Taichi loads, got {str(error)!r}; on Debian, apt-get install libx11-6."
        ) from None

import taichi as ti
from taichi.lang.ast import ast_transformer_utils

NEEDS = {
    "vulkan": "a Vulkan loader and driver (on Debian, apt-get install libvulkan1 mesa-vulkan-drivers)",
    "cuda": "a CUDA device that Taichi and torch share (on Debian, apt-get install nvidia-driver)",
}
"""What a machine that lacks a backend lacks."""

# Taichi writes its cache of compiled kernels when its program is finalised, which kernels that are still referred to
# put off until the process is gone.
atexit.register(ti.reset)


class _Wrapper(TextWrapper):
    """Taichi wraps the source line of every node that it compiles, for errors that it may never raise."""

    wrap = functools.lru_cache(maxsize=2**14)(TextWrapper.wrap)  # type: ignore[assignment]


ast_transformer_utils.TextWrapper = functools.cache(_Wrapper)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep off the screen what libraries write past Python, as Vulkan's loader does where it finds no driver."""
    kept = {}
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # a process without a screen has none
                kept[descriptor] = os.dup(descriptor)
                os.dup2(sink, descriptor)
        yield
    finally:
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(sink)

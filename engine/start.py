"""Taichi as it is loaded: what it needs of the machine, and compiled kernels that outlive the process."""

import atexit
import contextlib
import functools
import io
from textwrap import TextWrapper

from engine.errors import LibraryError

_PACKAGES = {"libX11": "libx11-6"}
"""Debian's packages of the libraries that Taichi's wheels look for on the machine."""


def missing_library(error: Exception) -> LibraryError:
    """What to say if Taichi cannot be imported because of `error`."""
    text = str(error)
    package = next((package for library, package in _PACKAGES.items() if library in text), None)
    if package is None:
        return LibraryError(f"Expected Taichi to load, got {text!r}; reinstall taichi, or install what it names.")
    return LibraryError(
        f"Expected libX11, which Taichi loads, got {text!r}; install it, on Debian by apt-get install {package}."
    )


try:
    with contextlib.redirect_stdout(io.StringIO()):  # Taichi prints advice of its own
        import taichi as ti
        from taichi.lang.ast import ast_transformer_utils
except (ImportError, OSError) as error:
    raise missing_library(error) from None

# Taichi writes its cache of compiled kernels when its program is finalised, which kernels that are still referred to
# put off until the process is gone.
atexit.register(ti.reset)


class _Wrapper(TextWrapper):
    """Taichi wraps the source line of every node that it compiles, for errors that it may never raise."""

    wrap = functools.lru_cache(maxsize=2**14)(TextWrapper.wrap)  # type: ignore[assignment]


ast_transformer_utils.TextWrapper = functools.cache(_Wrapper)

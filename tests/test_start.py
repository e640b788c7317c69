"""Bare machines: what is missing is told in one sentence, and left out of the test suite unless it is required."""

import os
import sys
import textwrap

import pytest
import taichi as ti
import torch
from children import ROOT, inherited, run_child, run_fresh, run_python
from taichi.lang.ast.ast_transformer_utils import TextWrapper

from engine.start import silenced

pytestmark = pytest.mark.float64

WITHOUT_X11 = """
import ctypes, sys
real = ctypes.CDLL

def missing(name, *args, **kwargs):
    if name == "libX11.so.6":
        raise OSError("libX11.so.6: cannot open shared object file: No such file or directory")
    return real(name, *args, **kwargs)

ctypes.CDLL = missing
sys.argv[0] = "/usr/bin/evenflow"
try:
    import {module}
except {error} as said:
    print(said)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Taichi loads libX11 on Linux alone")
@pytest.mark.parametrize(("module", "error"), [("evenflow", "SystemExit"), ("engine", "ImportError")])
def test_missing_libx11_is_told_before_anything_else(module, error):
    said = run_fresh(WITHOUT_X11.format(module=module, error=error)).stdout
    assert said == (
        "Expected libX11, which Taichi loads, got 'libX11.so.6: cannot open shared object file: No such file or "
        "directory'; on Debian, apt-get install libx11-6.\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's variables are tried on Linux")
@pytest.mark.parametrize(
    ("backend", "options", "code", "verb", "needs"),
    [
        ("vulkan", [], 0, "Left out", "a Vulkan loader and driver (on Debian, apt-get install "),
        ("vulkan", ["--require"], 1, "Cannot do without", "a Vulkan loader and driver (on Debian, apt-get install "),
        ("cuda", [], 1, "Cannot do without", "a CUDA device that Taichi and torch share"),
    ],
)
def test_a_suite_without_its_backend_ends_with_a_sentence(backend, options, code, verb, needs):
    command = [sys.executable, "-m", "pytest", "--backend", backend, "--precision", "float32", *options]
    hidden = dict.fromkeys(("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), "/nonexistent") | {"CUDA_VISIBLE_DEVICES": ""}
    environment = {name: value for name, value in inherited().items() if not name.startswith("PYTEST_XDIST")} | hidden
    done = run_child(command, environment, ROOT)
    assert done.returncode == code
    assert f"{verb} the tests on {backend}: they need {needs}" in done.stderr
    assert "RHI" not in done.stdout + done.stderr


COMPILE = """
import ctypes, taichi as ti, torch, engine
engine.init("cpu", "float64", threads=1)
from engine.launch import prepare

@ti.kernel
def double(x: ti.types.ndarray(ndim=1)):
    for i in range(x.shape[0]):
        x[i] = 2 * x[i]

x = torch.ones(3, dtype=torch.float64)
launch = prepare(double, x)
launch()
assert x.tolist() == [2.0, 2.0, 2.0]
ctypes.pythonapi.Py_IncRef(ctypes.py_object(launch))  # as when something in C holds on to it
"""


def test_kernels_are_kept_for_the_next_process(tmp_path, monkeypatch):
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(COMPILE)  # Taichi reads the sources of kernels from files
    source = (
        "import functools, runpy, taichi as ti\n"
        f"ti.init = functools.partial(ti.init, offline_cache_file_path={str(cache)!r})\n"
        f"runpy.run_path({str(script)!r})"
    )
    run_python(source)
    first = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.tic")}
    assert len(first) == 1
    run_python(source)
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*.tic")} == first


def test_lines_are_wrapped_as_taichi_wraps_them():
    for line in ("", "  x = 1", "    " + "^" * 100, "word " * 40):
        expected = textwrap.TextWrapper(width=80).wrap(line)
        assert TextWrapper(width=80).wrap(line) == TextWrapper(width=80).wrap(line) == expected


def test_what_libraries_write_past_python_is_kept_off_the_screen(capfd):
    with silenced():
        os.write(1, b"from a library")
        os.write(2, b"from a library")
    os.write(1, b"from us")
    assert capfd.readouterr() == ("from us", "")


@ti.kernel
def unknown(x: ti.types.ndarray(ndim=1)):
    for i in range(x.shape[0]):
        x[i] = nowhere[i]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


def test_errors_in_kernels_still_show_their_line():
    with pytest.raises(ti.TaichiCompilationError, match=r"test_start.py\", line \d+, in unknown:\n *x\[i\] = nowhere"):
        unknown(torch.zeros(2, dtype=torch.float64))

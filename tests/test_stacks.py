"""Loops in users' kernels: the stacks of their adjoints, and the children of the process in which they are tried."""

import warnings

import pytest
import taichi as ti
import torch
from children import ROOT, run_python
from conftest import relative_error
from test_systems import reference_pull_back
from users_kernels import A, arrays, refusal

import engine
from engine import AdjointError, EvenflowWarning, KernelSystem
from engine.trials import trial
from engine.trials.isolation import Crash, available, isolated
from engine.trials.loops import has_inner_loops


@ti.kernel
def chain(x: A, u: A, y: A, dt: float, n: int):
    for b in range(x.shape[0]):
        for i in range(n):
            force = 0.0
            for k in range(n):
                d = x[b, k] - x[b, i]
                force += d / (1.0 + d * d)
            y[b, i] = x[b, i] + dt * (force + u[b, 0])


def chain_step(state, control):
    d = state[:, None, :] - state[:, :, None]
    return state + 0.01 * ((d / (1 + d * d)).sum(2) + control)


@ti.kernel
def substeps(x: A, u: A, y: A, dt: float, n: int):
    for b in range(x.shape[0]):
        p, v = x[b, 0], x[b, 1]
        for _ in range(n):
            v += dt / n * (u[b, 0] - ti.sin(p))
            p += dt / n * v
        y[b, 0] = p
        y[b, 1] = v


def substeps_step(n):
    def step(state, control):
        p, v = state.unbind(1)
        for _ in range(n):
            v = v + 0.1 / n * (control[:, 0] - p.sin())
            p = p + 0.1 / n * v
        return torch.stack([p, v], 1)

    return step


@pytest.mark.parametrize("n", [5, 40, 200])
def test_inner_loops_over_neighbours_have_the_adjoint_of_torch(n):
    system = KernelSystem(chain, (n,), (1,), (0.01, n))
    state, control, adjoint = arrays(system, 2)
    for found, wanted in zip(
        system.pull_back(state, control, adjoint),
        reference_pull_back(chain_step, state, control, adjoint),
        strict=True,
    ):
        assert relative_error(found, wanted) < (1e-12 if state.dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("n", [31, 200, 2000])
def test_substeps_have_the_adjoint_of_torch(n):
    system = KernelSystem(substeps, (2,), (1,), (0.1, n))
    state, control, adjoint = arrays(system, 2)
    for found, wanted in zip(
        system.pull_back(state, control, adjoint),
        reference_pull_back(substeps_step(n), state, control, adjoint),
        strict=True,
    ):
        assert relative_error(found, wanted) < (1e-12 if state.dtype == torch.float64 else 1e-4)


@pytest.mark.float64
def test_loops_beyond_every_stack_are_refused_and_the_process_lives(monkeypatch):
    monkeypatch.setattr(trial, "_STACKS", (16, 64))
    message = refusal(KernelSystem(substeps, (2,), (1,), (0.1, 20_000)), AdjointError)
    assert "more values of a local to keep than 64 entries hold" in message


STACKS = """
import sys, torch, engine
engine.init("cpu", "float64", threads=1, ad_stack_size=1000)
sys.path.insert(0, "tests")
from test_stacks import chain
state, control, adjoint = torch.randn(1, 40).double(), torch.randn(1, 1).double(), torch.randn(1, 40).double()
try:
    engine.KernelSystem(chain, (40,), (1,), (0.01, 40)).pull_back(state, control, adjoint)
except engine.AdjointError as error:
    print(error)
"""


@pytest.mark.float64
def test_a_stack_size_that_was_asked_for_is_kept_to():
    said = run_python(STACKS.replace('"tests"', repr(str(ROOT / "tests")))).stdout.splitlines()[-1]
    assert "to fit autodiff stacks of 1000 entries" in said
    assert "pass ef.init(ad_stack_size=65536)" in said


@pytest.mark.float64
def test_children_answer_refuse_warn_and_die_alone():
    if not available():
        pytest.skip("asks for children of the process")

    def refuse():
        raise engine.ShapeError("Expected this.")

    def warn():
        warnings.warn("noted", EvenflowWarning, stacklevel=1)
        return 2

    def die():
        import ctypes

        ctypes.string_at(0)

    target = torch.zeros(3)
    assert isolated(lambda: target.fill_(1.0).tolist()) == [1.0, 1.0, 1.0]
    assert not target.any()
    with pytest.raises(engine.ShapeError, match="Expected this"):
        isolated(refuse)
    with pytest.warns(EvenflowWarning, match="noted"):
        assert isolated(warn) == 2
    with pytest.raises(Crash, match="SIGSEGV"):
        isolated(die)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        isolated(lambda: 1 // 0)


@ti.func
def looping(x):
    total = 0.0
    for _ in range(3):
        total += x
    return total


@ti.kernel
def calls_a_loop(x: A):
    for b in range(x.shape[0]):
        x[b, 0] = looping(x[b, 1])


@ti.kernel
def unrolled(x: A):
    for b in range(x.shape[0]):
        for i in ti.static(range(2)):
            x[b, i] = ti.sin(x[b, i])


@pytest.mark.float64
@pytest.mark.parametrize(
    ("kernel", "loops"), [(chain, True), (substeps, True), (calls_a_loop, True), (unrolled, False)]
)
def test_loops_are_read_from_the_source(kernel, loops):
    assert has_inner_loops(kernel._primal) == loops

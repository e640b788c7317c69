"""The trial of users' steps: what is refused, with which words."""

import math

import pytest
import taichi as ti
import torch
from conftest import uniform
from users_kernels import BATCH, A, arrays, refusal

from engine import KernelError, KernelSystem, SettingError, ShapeError
from engine.trials import isolation, trial


@ti.kernel
def accumulates(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0]
        y[b, 1] += x[b, 1] + dt * u[b, 0]


@ti.kernel
def forgets(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]


@ti.kernel
def forgets_in_a_branch(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        if x[b, 0] > 0.0:
            y[b, 1] = x[b, 1]


@ti.kernel
def reads_output(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + 0.5 * y[b, 0]
        y[b, 1] = x[b, 1] + dt * u[b, 0]


@ti.kernel
def changes_control(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        u[b, 0] = ti.max(ti.min(u[b, 0], 0.1), -0.1)
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        y[b, 1] = x[b, 1]


@ti.kernel
def random(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        y[b, 1] = x[b, 1] + dt * ti.random()


@ti.kernel
def mixes(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        y[b, 1] = x[0, 1]


@ti.kernel
def reads_outside(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 1]
        y[b, 1] = x[b, 1]


@ti.kernel
def writes_outside(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        y[b, 1] = x[b, 1]
        y[b, 2] = 0.0


@ti.kernel
def writes_far(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        y[b + 2**24, 1] = x[b, 1]


@ti.kernel
def misspelt(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * force  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (accumulates, "next_state[1] added to; write = instead of +="),
        (forgets, "next_state[1] left as it was; assign it"),
        (forgets_in_a_branch, "next_state[1] left as it was; assign it"),
        (reads_output, "next_state[0] that depends on it"),
        (changes_control, "control[0] changed"),
        (random, "another next_state[1] at a second launch"),
        (mixes, "next_state[1] of one that depends on another"),
        (reads_outside, "an access to u at [0, 1]"),
        (writes_outside, "an access to y at [0, 2]"),
        (writes_far, "'writes_far'"),  # a crash, or a component left, as memory lies
        (misspelt, "'Name \"force\" is not defined' at line"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_step_is_refused_with_the_component(kernel, words):
    assert words in refusal(KernelSystem(kernel, (2,), (1,), (0.1,)), KernelError)


@pytest.mark.float64
def test_a_batch_of_one_is_tried_like_any_other():
    assert "added to" in refusal(KernelSystem(accumulates, (2,), (1,), (0.1,)), KernelError, batch=1)
    assert "an access to y at [0, 2]" in refusal(KernelSystem(writes_outside, (2,), (1,), (0.1,)), KernelError, batch=1)


@ti.kernel
def shift(x: A, u: A, y: A, dt: float, times: int):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * times * u[b, 0]


@ti.kernel
def half_precision(x: A, u: ti.types.ndarray(dtype=ti.f16, ndim=2), y: A, dt: float, times: int):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * times * u[b, 0]


@ti.kernel
def flat(x: A, u: A, y: ti.types.ndarray(ndim=1), dt: float, times: int):
    for b in range(x.shape[0]):
        y[b] = x[b, 0] + dt * times * u[b, 0]


@ti.kernel
def weighted(x: A, u: A, y: A, weights: ti.types.ndarray(ndim=1)):
    for b in range(x.shape[0]):
        y[b, 0] = weights[0] * x[b, 0] + weights[1] * u[b, 0]


def plain_function(x, u, y, dt, times):
    y[:] = x


@pytest.mark.float64
@pytest.mark.parametrize(
    ("kernel", "constants", "kind", "words"),
    [
        (shift, (), SettingError, "Expected 2 constants (dt, times) for step kernel 'shift' of system 'S', got 0"),
        (
            shift,
            (0.1, 1, 2),
            SettingError,
            "Expected 2 constants (dt, times) for step kernel 'shift' of system 'S', got 3",
        ),
        (shift, ("0.1", 1), SettingError, "constant 'dt' of step kernel 'shift' of system 'S' as a float, got '0.1'"),
        (shift, (torch.tensor(0.1), 1), SettingError, "constant 'dt' of step kernel 'shift' of system 'S' as a float"),
        (shift, (math.nan, 1), SettingError, "as a number, got nan"),
        (shift, (0.1, 1.0), SettingError, "constant 'times' of step kernel 'shift' of system 'S' as an int, got 1.0"),
        (shift, (0.1, None), SettingError, "as an int, got None"),
        (shift, (0.1, 2**31), SettingError, "within int, got 2147483648"),
        (
            weighted,
            ([1.0, 0.1],),
            SettingError,
            "constant 'weights' of step kernel 'weighted' of system 'S' as a torch tensor",
        ),
        (weighted, (torch.ones(1, 2).double(),), ShapeError, "annotated with ndim=2, got ndim=1"),
        (half_precision, (0.1, 1), ShapeError, "parameter 'u' (control) of step kernel 'half_precision' of system 'S'"),
        (
            flat,
            (0.1, 1),
            ShapeError,
            "parameter 'y' (next_state) of step kernel 'flat' of system 'S' annotated with ndim=2",
        ),
        (plain_function, (0.1, 1), SettingError, "Expected step of system 'S' as a @ti.kernel function"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(kernel, constants, kind, words):
    assert words in refusal(KernelSystem(kernel, (1,), (1,), constants, name="S"), kind)


@pytest.mark.float64
def test_a_pull_back_kernel_is_looked_at_with_the_step():
    system = KernelSystem(shift, (1,), (1,), (0.1, 2), pull_back=shift, name="S")
    assert "pull_back kernel 'shift' of system 'S'" in refusal(system, SettingError)


@pytest.mark.float64
def test_numbers_that_fit_are_taken():
    state, control, adjoint = uniform(0, BATCH, 1), uniform(1, BATCH, 1), uniform(2, BATCH, 1)
    for kernel, constants, gain in (
        (shift, (1, 2), 2.0),
        (weighted, (torch.tensor([1.0, 0.5]).double(),), 0.5),
    ):
        system = KernelSystem(kernel, (1,), (1,), constants)
        torch.testing.assert_close(system.step(state, control), state + gain * control)
        torch.testing.assert_close(system.pull_back(state, control, adjoint)[1], gain * adjoint)


held = ti.field(ti.f32, shape=16)


@ti.kernel
def counts(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        ti.atomic_add(held[15], 1.0)
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        y[b, 1] = x[b, 1]


@pytest.mark.float64
def test_a_trial_happens_once_and_leaves_nothing_behind(monkeypatch):
    if not isolation.available():
        pytest.skip("asks for children of the process")
    tried = []
    monkeypatch.setattr(trial, "isolated", lambda work: tried.append(work) or isolation.isolated(work))
    system = KernelSystem(counts, (2,), (1,), (0.1,))
    state, control, adjoint = arrays(system)
    torch.manual_seed(3)
    before, drawn = held[15], torch.get_rng_state()
    system.prepare_step(state, control, torch.zeros_like(state))
    system.prepare_pull_back(state, control, adjoint, torch.zeros_like(state), torch.zeros_like(control))
    assert held[15] == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert len(tried) == 2
    system.step(state[:1].clone(), control[:1].clone())
    system.pull_back(state, control, adjoint)
    assert len(tried) == 2
    assert held[15] > before
    assert system._buffers is not None
    assert sum(buffer.nbytes for buffer in system._buffers.values()) == system.scratch_bytes(BATCH)

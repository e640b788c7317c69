"""The trial of users' kernels: what is refused, with which words, and what is not."""

import math
import warnings

import pytest
import taichi as ti
import torch
from conftest import ROOT, relative_error, run_python, uniform
from test_systems import reference_pull_back

import engine
from engine import AdjointError, KernelError, KernelSystem, KernelWarning, SettingError, ShapeError
from engine.isolation import Crash, available, isolated
from engine.loops import has_inner_loops

A = ti.types.ndarray(ndim=2)
BATCH = 3


def arrays(system, batch=BATCH):
    """A state, a control and an adjoint of a system."""
    shapes = system.state_shape, system.control_shape, system.state_shape
    return [uniform(seed, batch, *shape) for seed, shape in enumerate(shapes)]


def refusal(system, kind, batch=BATCH):
    """The sentence with which a system is refused when it is stepped and pulled back; the same one again."""
    state, control, adjoint = arrays(system, batch)
    with pytest.raises(kind) as first:
        system.step(state, control)
        system.pull_back(state, control, adjoint)
    with pytest.raises(kind) as second:
        system.pull_back(state, control, adjoint)
    assert str(first.value) == str(second.value)
    message = str(first.value)
    assert repr(system.name) in message
    assert message.endswith(".")
    assert "\n" not in message
    return message


# Steps that are none. --------------------------------------------------------------------------------------------


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
        y[b, 0] = x[b, 0] + dt * force  # noqa: F821


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
        (writes_far, "got SIGSEGV in a trial"),
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


# Arguments. ------------------------------------------------------------------------------------------------------


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


# Adjoints that are none. ------------------------------------------------------------------------------------------

held = ti.field(ti.f32, shape=16)


@ti.kernel
def through_a_field(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        held[b] = u[b, 0] - 4.0 * x[b, 0]
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * x[b, 1]
        y[b, 1] = x[b, 1] + dt * held[b]


@ti.kernel
def guarded_outside(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        r = ti.max(ti.sqrt(x[b, 0] * x[b, 0] + x[b, 1] * x[b, 1]), 0.1)
        y[b, 0] = x[b, 0] + dt * (u[b, 0] - x[b, 0] / r)
        y[b, 1] = x[b, 1] - dt * x[b, 1] / r


@ti.kernel
def exponential_in_a_loop(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        total = 0.0
        for k in range(8):
            total += ti.exp(-x[b, 0] * k) * ti.tanh(x[b, 1] * k)
        y[b, 0] = x[b, 0] + dt * total
        y[b, 1] = x[b, 1] + dt * u[b, 0]


@ti.kernel
def continues(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0]
        y[b, 1] = x[b, 1] + dt * u[b, 0]
        if x[b, 0] > 0.0:
            continue
        y[b, 0] = 0.5 * x[b, 0]


@ti.kernel
def breaks(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        v = x[b, 0]
        for _ in range(9):
            v = v + dt * u[b, 0]
            if v > 1.0:
                break
        y[b, 0] = v
        y[b, 1] = x[b, 1]


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (through_a_field, "got 0 for control[0] where central differences give"),
        (guarded_outside, "got nan for state[0] near [0, 0, 0]"),
        (exponential_in_a_loop, "to be the derivative of its step"),
        (continues, "got `continue` in its line 7"),
        (breaks, "got `break` in its line 8"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_adjoint_that_is_none_is_refused_with_the_component(kernel, words):
    system = KernelSystem(kernel, (2,), (1,), (0.1,))
    state, control, _ = arrays(system)
    assert torch.isfinite(system.step(state, control)).all()
    message = refusal(system, AdjointError)
    assert words in message
    assert "pull_back" in message or "guard inside" in message


@ti.kernel
def spring(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * x[b, 1]
        y[b, 1] = x[b, 1] + dt * (u[b, 0] - ti.sin(x[b, 0]))


@ti.kernel
def spring_adjoint(x: A, u: A, g: A, a: A, c: A, dt: float, case: ti.template()):
    for b in range(x.shape[0]):
        a[b, 0] = g[b, 0] - dt * ti.cos(x[b, 0]) * g[b, 1]
        if ti.static(case != "forgotten"):
            a[b, 1] = g[b, 1] + dt * g[b, 0]
        if ti.static(case == "added"):
            a[b, 1] += a[b, 1] * 0.0 + dt * g[b, 0]
        if ti.static(case == "assigned"):
            c[b, 0] = dt * g[b, 1]
        elif ti.static(case == "sign"):
            c[b, 0] -= dt * g[b, 1]
        elif ti.static(case != "no control"):
            c[b, 0] += dt * g[b, 1]
        if ti.static(case == "eats"):
            g[b, 1] = 0.0
        if ti.static(case == "outside"):
            c[b, 1] += 1.0


@ti.kernel
def spring_step(x: A, u: A, y: A, dt: float, case: ti.template()):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * x[b, 1]
        y[b, 1] = x[b, 1] + dt * (u[b, 0] - ti.sin(x[b, 0]))


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("forgotten", AdjointError, "adjoint[1] left as it was; assign it"),
        ("added", AdjointError, "for state[1] where central differences give"),
        ("assigned", AdjointError, "cotangent[0] that loses what it held before; write += instead of ="),
        ("sign", AdjointError, "for control[0] where central differences give"),
        ("no control", AdjointError, "got 0 for control[0] where central differences give"),
        ("eats", KernelError, "next_adjoint[1] changed"),
        ("outside", KernelError, "an access to c at [0, 1]"),
    ],
)
def test_a_users_pull_back_is_held_to_its_contract(case, kind, words):
    system = KernelSystem(spring_step, (2,), (1,), (0.1, case), pull_back=spring_adjoint, name="spring")
    assert words in refusal(system, kind)


@pytest.mark.vulkan
def test_a_right_pull_back_passes_and_a_deliberate_one_is_let_through():
    system = KernelSystem(spring_step, (2,), (1,), (0.1, "right"), spring_adjoint)
    state, control, adjoint = arrays(system)
    expected = [adjoint[:, 1] + 0.1 * adjoint[:, 0], 0.1 * adjoint[:, 1]]
    pulled = system.pull_back(state, control, adjoint)
    torch.testing.assert_close(pulled[0][:, 1], expected[0])
    torch.testing.assert_close(pulled[1][:, 0], expected[1])
    surrogate = KernelSystem(spring_step, (2,), (1,), (0.1, "sign"), spring_adjoint, checked=False)
    torch.testing.assert_close(surrogate.pull_back(state, control, adjoint)[1], -pulled[1])


@ti.kernel
def continues_adjoint(x: A, u: A, g: A, a: A, c: A, dt: float):
    for b in range(x.shape[0]):
        a[b, 1] = g[b, 1]
        c[b, 0] += dt * g[b, 1]
        a[b, 0] = g[b, 0]
        if x[b, 0] > 0.0:
            continue
        a[b, 0] = 0.5 * g[b, 0]


@pytest.mark.float64
def test_what_taichi_cannot_differentiate_works_with_a_pull_back_of_its_own():
    system = KernelSystem(continues, (2,), (1,), (0.1,), continues_adjoint)
    state, control, adjoint = arrays(system)
    pulled = system.pull_back(state, control, adjoint)
    torch.testing.assert_close(pulled[0][:, 0], torch.where(state[:, 0] > 0, 1.0, 0.5) * adjoint[:, 0])
    torch.testing.assert_close(pulled[1], 0.1 * adjoint[:, 1:])


# What must not be refused. ----------------------------------------------------------------------------------------


@ti.kernel
def bounces(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        v = x[b, 1] - 9.8 * dt + dt * u[b, 0]
        p = x[b, 0] + dt * v
        if p < 0.0:
            v = -0.8 * v
            p = -0.8 * p
        y[b, 0] = p
        y[b, 1] = v


@ti.kernel
def pushes(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        force = (
            1e4 * ti.max(-x[b, 0], 0.0) - ti.abs(x[b, 1]) + ti.min(u[b, 0], x[b, 0]) + 100.0 * ti.sin(50.0 * x[b, 1])
        )
        y[b, 0] = x[b, 0] + dt * x[b, 1]
        y[b, 1] = x[b, 1] + dt * force


@ti.kernel
def grows(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] * (1.0 + dt * ti.log(x[b, 1])) + dt * u[b, 0]
        y[b, 1] = x[b, 1] ** 1.5 / x[b, 0]


@pytest.mark.parametrize("kernel", [bounces, pushes, grows], ids=lambda kernel: kernel.__name__)
def test_kinks_jumps_and_domains_raise_no_false_alarm(kernel):
    system = KernelSystem(kernel, (2,), (1,), (0.01,))
    state, control, adjoint = arrays(system)
    state = state.abs() + 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pulled = system.pull_back(state, control, adjoint)
    assert all(torch.isfinite(part).all() for part in pulled)


@ti.kernel
def drains(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * (u[b, 0] - ti.sqrt(x[b, 0]))
        y[b, 1] = x[b, 1]


@ti.kernel
def nowhere(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = ti.sqrt(-100.0 + x[b, 0]) + dt * u[b, 0]
        y[b, 1] = x[b, 1]


@pytest.mark.parametrize(
    ("kernel", "words"),
    [(drains, "got -inf for state[0] near [0, 0, 0]"), (nowhere, "hand states to it as typical_states")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_judged_is_warned_of(kernel, words):
    system = KernelSystem(kernel, (2,), (1,), (0.1,), typical_states=None)
    state, control, adjoint = arrays(system)
    with pytest.warns(KernelWarning) as noted:
        system.pull_back(state, control, adjoint)
    assert [words in str(warning.message) for warning in noted] == [True]


@pytest.mark.float64
def test_typical_states_are_where_an_adjoint_is_compared():
    typical = torch.full((1, 2), 200.0).double()
    system = KernelSystem(nowhere, (2,), (1,), (0.1,), typical_states=typical)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adjoint, _ = system.pull_back(typical, torch.zeros(1, 1).double(), torch.ones(1, 2).double())
    torch.testing.assert_close(adjoint, torch.tensor([[0.05, 1.0]]).double())


# Stacks. ----------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(engine.trial, "_STACKS", (16, 64))
    message = refusal(KernelSystem(substeps, (2,), (1,), (0.1, 20_000)), AdjointError)
    assert "more values of a local to keep than 64 entries hold" in message


STACKS = """
import sys, torch, engine
engine.init("cpu", "float64", threads=1, ad_stack_size=1000)
sys.path.insert(0, "tests")
from test_trial import chain
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


# The trial itself. ------------------------------------------------------------------------------------------------


@ti.kernel
def counts(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        ti.atomic_add(held[15], 1.0)
        y[b, 0] = x[b, 0] + dt * u[b, 0]
        y[b, 1] = x[b, 1]


@pytest.mark.float64
def test_a_trial_happens_once_and_leaves_nothing_behind(monkeypatch):
    if not available():
        pytest.skip("asks for children of the process")
    tried = []
    monkeypatch.setattr(engine.trial, "isolated", lambda work: tried.append(work) or isolated(work))
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


@pytest.mark.float64
def test_children_answer_refuse_warn_and_die_alone():
    if not available():
        pytest.skip("asks for children of the process")

    def refuse():
        raise engine.ShapeError("Expected this.")

    def warn():
        warnings.warn("noted", KernelWarning, stacklevel=1)
        return 2

    def die():
        import ctypes

        ctypes.string_at(0)

    target = torch.zeros(3)
    assert isolated(lambda: target.fill_(1.0).tolist()) == [1.0, 1.0, 1.0]
    assert not target.any()
    with pytest.raises(engine.ShapeError, match="Expected this"):
        isolated(refuse)
    with pytest.warns(KernelWarning, match="noted"):
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
    ("kernel", "loops"), [(chain, True), (breaks, True), (calls_a_loop, True), (unrolled, False), (bounces, False)]
)
def test_loops_are_read_from_the_source(kernel, loops):
    assert has_inner_loops(kernel._primal) == loops

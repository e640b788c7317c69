"""The trial of users' adjoints: what is refused, what is warned of, and what is no fault."""

import warnings

import pytest
import taichi as ti
import torch
from users_kernels import A, arrays, refusal

from engine import AdjointError, EvenflowWarning, KernelError, KernelSystem

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
    [(drains, "inf for state[0] near [0, 0, 0]"), (nowhere, "hand states to it as typical_states")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_judged_is_warned_of(kernel, words):
    system = KernelSystem(kernel, (2,), (1,), (0.1,), typical_states=None)
    state, control, adjoint = arrays(system)
    with pytest.warns(EvenflowWarning) as noted:
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

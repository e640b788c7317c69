"""`gradcheck`: right systems pass in every precision, and a table says where a wrong one departs."""

import io

import pytest
import taichi as ti
import torch
from conftest import uniform
from rich.console import Console
from users_kernels import A

import engine
from engine import (
    CartPendulum,
    CartPole,
    Guidance,
    Integrator,
    KernelSystem,
    LinearSystem,
    QuantumBox,
    System,
    gradcheck,
)
from engine.held import Held

SYSTEMS = {
    "cart-pole": CartPole(2),
    "cart-pendulum": CartPendulum(),
    "guidance": Guidance(),
    "integrator": Integrator(2),
    "linear": LinearSystem([[1.0, 0.1], [-0.2, 0.9]], [[0.0], [0.1]]),
    "quantum": QuantumBox(),
    "held": Held(CartPole(1), 3),
}


def table_of(system, state, control):
    """The verdict and what is printed."""
    printed = io.StringIO()
    return gradcheck(system, state, control, Console(file=printed, width=120)), printed.getvalue()


@pytest.mark.parametrize("name", SYSTEMS)
def test_shipped_systems_pass(name):
    system = SYSTEMS[name]
    state, control = uniform(0, 2, *system.state_shape), uniform(1, 2, *system.control_shape)
    assert table_of(system, state, control) == (True, "")


class Wrong(System):
    """Another system with one entry of Aᵀ wrong by a factor."""

    name = "wrong"

    def __init__(self, of, factor):
        self.of, self.factor = of, factor
        self.state_shape, self.control_shape = of.state_shape, of.control_shape

    def prepare_step(self, state, control, next_state):
        return self.of.prepare_step(state, control, next_state)

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        launch = self.of.prepare_pull_back(state, control, next_adjoint, adjoint, cotangent)

        def wrong():
            launch()
            adjoint[:, 1] *= self.factor

        return wrong


def test_a_wrong_entry_is_named_with_both_values():
    system = LinearSystem([[1.0, 0.25], [0.0, 0.5]], [[0.0], [0.1]])
    state, control = uniform(0, 2, 2), uniform(1, 2, 1)
    verdict, printed = table_of(Wrong(system, 1.01), state, control)
    assert not verdict
    rows = [line.split("│")[1:5] for line in printed.splitlines() if "∂" in line]
    rows = [[cell.strip() for cell in row] for row in rows]
    expected = [
        [sample, f"∂next_state[{i}]/∂state[1]", value, right]
        for sample in ("0", "1")
        for i, value, right in ((0, "0.2525", "0.25"), (1, "0.505", "0.5"))
    ]
    digits = 5 if state.dtype == torch.float64 else 2
    shortened = [[*row[:2], *(f"{float(value):.{digits}g}" for value in row[2:])] for row in rows]
    wanted = [[*row[:2], *(f"{float(value):.{digits}g}" for value in row[2:])] for row in expected]
    assert sorted(shortened) == sorted(wanted)


def test_the_smallest_departure_seen_is_far_below_what_matters():
    system = LinearSystem([[1.0, 0.25], [0.0, 0.5]], [[0.0], [0.1]])
    state, control = uniform(0, 2, 2), uniform(1, 2, 1)
    least = 1e-5 if state.dtype == torch.float64 else 1e-3
    assert not table_of(Wrong(system, 1 + least), state, control)[0]
    assert table_of(Wrong(system, 1 + 1e-2 * least), state, control)[0]


@ti.kernel
def kinks(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * ti.max(x[b, 1], 0.0) + dt * ti.abs(u[b, 0])
        y[b, 1] = x[b, 1]


@ti.kernel
def root(x: A, u: A, y: A, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * ti.max(ti.sqrt(x[b, 1] * x[b, 1]), 0.5) + dt * u[b, 0]
        y[b, 1] = x[b, 1]


@ti.kernel
def root_adjoint(x: A, u: A, g: A, a: A, c: A, dt: float):
    for b in range(x.shape[0]):
        a[b, 0] = g[b, 0]
        a[b, 1] = g[b, 1] + 0.0 * dt * x[b, 1] / ti.sqrt(x[b, 1] * x[b, 1]) * g[b, 0]
        c[b, 0] += dt * g[b, 0]


def test_kinks_do_not_depart_and_what_is_not_finite_does():
    zero = torch.zeros_like(uniform(0, 1, 2)), torch.zeros_like(uniform(0, 1, 1))
    assert table_of(KernelSystem(kinks, (2,), (1,), (0.1,)), *zero) == (True, "")
    system = KernelSystem(root, (2,), (1,), (0.1,), root_adjoint, checked=False)
    verdict, printed = table_of(system, *zero)
    assert not verdict
    assert "nan" in printed
    assert table_of(system, zero[0] + 0.3, zero[1])[0]


@pytest.mark.float64
def test_a_refused_adjoint_is_shown_component_by_component():
    system = KernelSystem(root, (2,), (1,), (0.1,), wrong_adjoint)
    state, control = uniform(0, 1, 2), uniform(1, 1, 1)
    with pytest.raises(engine.AdjointError, match=r"for control\[0\]"):
        system.pull_back(state, control, state)
    verdict, printed = table_of(system, state, control)
    assert not verdict
    assert "∂next_state[0]/∂control[0]" in printed


@ti.kernel
def wrong_adjoint(x: A, u: A, g: A, a: A, c: A, dt: float):
    for b in range(x.shape[0]):
        a[b, 0] = g[b, 0]
        a[b, 1] = g[b, 1]
        c[b, 0] += 2.0 * dt * g[b, 0]


@ti.kernel
def turns(x: A, u: A, y: A, dt: float):
    for b, i in ti.ndrange(x.shape[0], x.shape[1]):
        y[b, i] = x[b, i] + dt * ti.sin(x[b, (i + 1) % x.shape[1]]) + dt * u[b, 0]


@pytest.mark.float64
def test_wide_systems_are_checked_along_sums_of_rows():
    system = KernelSystem(turns, (100,), (1,), (0.1,))
    assert table_of(system, uniform(0, 1, 100), uniform(1, 1, 1))[0]
    verdict, printed = table_of(Wrong(system, 2.0), uniform(0, 1, 100), uniform(1, 1, 1))
    assert not verdict
    assert printed.count("∂g·next_state/∂state[1] ") == 2


@pytest.mark.float64
def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(engine.ShapeError, match=r"Expected control of shape \[1, 1\], got \[1, 2\]"):
        gradcheck(CartPole(1), uniform(0, 1, 4), uniform(1, 1, 2))

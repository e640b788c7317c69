"""What `gradcheck` says besides departures: promises that are broken, and slopes by parameters."""

# pyright: reportIncompatibleMethodOverride=false

import io
from typing import NamedTuple

import pytest
import taichi as ti
import torch
from conftest import tensor_options, uniform
from rich.console import Console
from users_kernels import A, each

from engine import KernelSystem, System, VectorSystem, gradcheck

pytestmark = pytest.mark.float64


class Gravity(NamedTuple):
    g: float = 9.8


@ti.kernel
def pull_assigned(x: A, u: A, g: A, a: A, c: A):
    for b in range(x.shape[0]):
        a[b, 0] = g[b, 0] * (1.0 - 0.1 * u[b, 0] * ti.sin(x[b, 0]))
        c[b, 0] = 0.1 * ti.cos(x[b, 0]) * g[b, 0]


def said_by_gradcheck(system, state, control):
    printed = io.StringIO()
    assert gradcheck(system, state, control, Console(file=printed, width=60)) is False
    return printed.getvalue()


class ByTorch(System):
    """x' = x² + u in torch, with a mistake of choice."""

    name, state_shape, control_shape = "by torch", (2,), (2,)

    def __init__(self, mistake=""):
        self.mistake = mistake

    def prepare_step(self, state, control, next_state):
        def launch():
            if self.mistake != "rebinds":
                next_state.copy_(state.square() + control)

        return launch

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        def by_autograd():
            with torch.enable_grad():
                x = state.detach().clone().requires_grad_()
                (found,) = torch.autograd.grad((x.square() + control).sum(1), x, torch.ones(len(x), **tensor_options()))
            adjoint.copy_(found * next_adjoint)
            cotangent.add_(next_adjoint)

        def launch():
            adjoint.copy_(2.0 * state * next_adjoint)
            cotangent.copy_(next_adjoint) if self.mistake == "assigns" else cotangent.add_(next_adjoint)

        return by_autograd if self.mistake == "autograd" else launch


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("rebinds", "to assign every component of next_state"),
        ("assigns", "to add to cotangent"),
        ("autograd", r"torch\.inference_mode\(\)"),
    ],
)
def test_gradcheck_says_what_else_is_broken(mistake, told):
    state, control = uniform(1, 3, 2), uniform(2, 3, 2)
    assert gradcheck(ByTorch(), state, control)
    said = said_by_gradcheck(ByTorch(mistake), state, control)
    assert len(said.splitlines()) == 1
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(said)


def test_gradcheck_says_so_of_kernels_too():
    system = KernelSystem(each, (1,), (1,), pull_back=pull_assigned)
    assert "to add to cotangent" in said_by_gradcheck(system, uniform(1, 3, 1), uniform(2, 3, 1))


@ti.data_oriented
class Hanging(VectorSystem):
    """One angle and its rate, whose slope by gravity may be wrong."""

    name, state_shape, control_shape, constants = "hanging", (2,), (1,), Gravity()

    def __init__(self, wrong):
        self.wrong = wrong

    @ti.func
    def advance(self, state, control, parameters: ti.template()):
        return ti.Vector([state[0] + 0.1 * state[1], state[1] + 0.1 * (control[0] - parameters.g * ti.sin(state[0]))])

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint, parameters: ti.template()):
        slope = -0.1 * ti.sin(state[0]) * next_adjoint[1]
        if ti.static(self.wrong):
            slope = -0.1 * ti.cos(state[0]) * next_adjoint[1]
        by_angle = next_adjoint[0] - 0.1 * parameters.g * ti.cos(state[0]) * next_adjoint[1]
        by_rate = 0.1 * next_adjoint[0] + next_adjoint[1]
        return ti.Vector([by_angle, by_rate]), ti.Vector([0.1 * next_adjoint[1]]), ti.Vector([slope])


def test_gradcheck_looks_at_parameters():
    state, control = uniform(1, 2, 2), uniform(2, 2, 1)
    assert gradcheck(Hanging(False), state, control)
    printed = io.StringIO()
    assert not gradcheck(Hanging(True), state, control, Console(file=printed, width=120))
    assert "∂next_state[1]/∂g" in printed.getvalue()
    assert "∂state" not in printed.getvalue()

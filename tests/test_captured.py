"""What kernels take of the program around them: another number or function is that of the next system, not of none."""

import sys
from types import SimpleNamespace

import pytest
import taichi as ti
import torch
from conftest import tensor_options, uniform

import engine
from engine import KernelSystem, SettingError, VectorSystem, launch
from engine.captured import captured

ARRAY = ti.types.ndarray(ndim=2)
HERE = sys.modules[__name__]
RATE = 0.25
PLACE = SimpleNamespace(rate=0.5, name="here")
PULL = ti.Vector([1.0, 0.0])


@ti.func
def force(x):
    return -RATE * x


@ti.func
def stronger(x):
    return -3.0 * x


@ti.kernel
def fall(state: ARRAY, control: ARRAY, next_state: ARRAY):
    for b in range(state.shape[0]):
        next_state[b, 0] = state[b, 0] + control[b, 0] + force(state[b, 0]) * PLACE.rate + PULL[0]


class Falling(VectorSystem):
    """The same, of a class."""

    name, state_shape, control_shape = "falling", (1,), (1,)

    @ti.func
    def advance(self, state, control):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ti.Vector([state[0] + control[0] + force(state[0]) * PLACE.rate + PULL[0]])

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):  # pyright: ignore[reportIncompatibleMethodOverride]
        slope = 1.0 + (force(state[0] + 1.0) - force(state[0])) * PLACE.rate
        return ti.Vector([slope * next_adjoint[0]]), ti.Vector([next_adjoint[0]])


class Shared(Falling):
    """Whose kernels equal objects share."""

    read_by_kernels = ()


def fallen(states, control, rate=0.25, place=0.5, pull=1.0):
    return states + control - rate * place * states + pull


BUILD = {
    "kernels": lambda: KernelSystem(fall, (1,), (1,)),
    "a class": Falling,
    "a class whose objects share kernels": Shared,
}
CHANGES = {
    "a number": ("RATE", 0.75, {"rate": 0.75}),
    "a function": ("force", stronger, {"rate": 3.0}),
    "an attribute": ("PLACE", SimpleNamespace(rate=2.0), {"place": 2.0}),
    "a vector": ("PULL", ti.Vector([5.0, 0.0]), {"pull": 5.0}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("build", BUILD)
def test_what_is_changed_is_that_of_the_next_system_and_refused_by_the_one_before(build, change, monkeypatch):
    name, value, changed = CHANGES[change]
    states, controls = uniform(0, 3, 1), uniform(1, 3, 1)
    before = BUILD[build]()
    first = before.step(states, controls)
    torch.testing.assert_close(first, fallen(states, controls))
    before.pull_back(states, controls, states)
    with monkeypatch.context() as patch:
        patch.setattr(HERE, name, value)
        after = BUILD[build]()
        torch.testing.assert_close(after.step(states, controls), fallen(states, controls, **changed))
        slope = fallen(torch.ones(1), 0, **changed) - fallen(torch.zeros(1), 0, **changed)
        adjoint, _ = after.pull_back(states, controls, torch.ones_like(states))
        torch.testing.assert_close(adjoint, slope.to(adjoint).expand_as(adjoint))
        if build != "a class whose objects share kernels":  # which are compiled anew
            for attempt in (lambda: before.step(states, controls), lambda: before.pull_back(states, controls, states)):
                with pytest.raises(
                    SettingError, match=r"^Expected .*, as its kernels were compiled, got .*\.$"
                ) as told:
                    attempt()
                assert name in str(told.value)
    assert torch.equal(before.step(states, controls), first)
    assert torch.equal(BUILD[build]().step(states, controls), first)


def test_a_number_of_a_function_around_the_kernel_counts():
    def made():
        factor = 2.0

        @ti.kernel
        def grow(state: ARRAY, control: ARRAY, next_state: ARRAY):
            for b in range(state.shape[0]):
                next_state[b, 0] = factor * state[b, 0] + control[b, 0]

        def change(value):
            nonlocal factor
            factor = value

        return grow, change

    grow, change = made()
    states, controls = uniform(0, 3, 1), uniform(1, 3, 1)
    torch.testing.assert_close(KernelSystem(grow, (1,), (1,)).step(states, controls), 2.0 * states + controls)
    change(5.0)
    torch.testing.assert_close(KernelSystem(grow, (1,), (1,)).step(states, controls), 5.0 * states + controls)


def test_nothing_is_compiled_twice_where_nothing_changed(monkeypatch):
    monkeypatch.setattr(launch, "_compiled_anew", lambda *arguments: pytest.fail("compiled anew"))
    states = uniform(0, 3, 1)
    for build in BUILD.values():
        for _ in range(2):
            build().step(states, states)


def test_what_is_taken_is_named_as_it_is_read_and_nothing_else_is():
    assert captured(fall) == {"force": force, "RATE": 0.25, "PLACE.rate": 0.5, "PULL": [1.0, 0.0]}
    assert {name: captured(Falling)[name] for name in captured(fall)} == captured(fall)
    assert captured(stronger) == {}


def test_gradcheck_is_of_the_functions_that_are_there(monkeypatch):
    one = torch.ones(1, 1, **tensor_options())
    monkeypatch.setattr(HERE, "RATE", 0.5)
    assert engine.gradcheck(KernelSystem(fall, (1,), (1,)), one, one)


@ti.kernel
def weigh(states: ARRAY, loss: ti.types.ndarray(ndim=0)):
    for b in range(states.shape[0]):
        loss[None] += RATE * states[b, 0] ** 2


def weighed(states, change=lambda: None):
    loss = torch.zeros((), **tensor_options(), requires_grad=True)
    with engine.RolloutTape(engine.FULL, loss=loss):
        weigh(states, loss)
        change()
    return loss.detach()


def test_kernels_of_a_tape_are_those_of_the_program_as_it_is(monkeypatch):
    states = uniform(0, 3, 1).requires_grad_()
    for rate in (0.25, 4.0, 0.25):
        monkeypatch.setattr(HERE, "RATE", rate)
        states.grad = None
        torch.testing.assert_close(weighed(states), rate * states.detach().square().sum())
        torch.testing.assert_close(states.grad, 2.0 * rate * states.detach())
    with pytest.raises(
        engine.AdjointError, match="Expected RATE, which kernel 'weigh' takes of the program, as it was"
    ):
        weighed(states, lambda: monkeypatch.setattr(HERE, "RATE", 7.0))

"""What kernels take of the program around them: another number or function is that of the next system, not of none."""

import enum
import pickle
import sys
from types import SimpleNamespace

import numpy as np
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


class Mode(enum.Enum):
    HALF = 1
    DOUBLE = 2


@ti.data_oriented
class Helper:
    def __init__(self, factor):
        self.factor = factor

    @ti.func
    def times(self, x):
        return self.factor * x


def coefficient():
    return OTHER


NUMPY, MODE, TABLE, HELP, OTHER, LATE = np.float32(2.0), Mode.DOUBLE, {0: 2.0}, Helper(2.0), 2.0, None


@ti.kernel
def of_numpy(state: ARRAY, control: ARRAY, next_state: ARRAY):
    for b in range(state.shape[0]):
        next_state[b, 0] = NUMPY * state[b, 0] + control[b, 0]


@ti.kernel
def of_mode(state: ARRAY, control: ARRAY, next_state: ARRAY):
    for b in range(state.shape[0]):
        if ti.static(MODE == Mode.DOUBLE):
            next_state[b, 0] = 2.0 * state[b, 0] + control[b, 0]
        else:
            next_state[b, 0] = 0.5 * state[b, 0] + control[b, 0]


@ti.kernel
def of_list(state: ARRAY, control: ARRAY, next_state: ARRAY):
    for b in range(state.shape[0]):
        next_state[b, 0] = ti.static(TABLE[0]) * state[b, 0] + control[b, 0]


@ti.kernel
def of_vector(state: ARRAY, control: ARRAY, next_state: ARRAY):
    for b in range(state.shape[0]):
        next_state[b, 0] = 2.0 * PULL[0] * state[b, 0] + control[b, 0]


@ti.kernel
def of_object(state: ARRAY, control: ARRAY, next_state: ARRAY):
    for b in range(state.shape[0]):
        next_state[b, 0] = HELP.times(state[b, 0]) + control[b, 0]


@ti.kernel
def of_python(state: ARRAY, control: ARRAY, next_state: ARRAY):
    for b in range(state.shape[0]):
        next_state[b, 0] = ti.static(coefficient()) * state[b, 0] + control[b, 0]


KINDS = {
    "a number of NumPy": (of_numpy, lambda patch: patch.setattr(HERE, "NUMPY", np.float32(0.5))),
    "one of an enumeration": (of_mode, lambda patch: patch.setattr(HERE, "MODE", Mode.HALF)),
    "an entry of a table": (of_list, lambda patch: patch.setitem(TABLE, 0, 0.5)),
    "an entry of a vector": (of_vector, lambda patch: patch.setattr(HERE, "PULL", ti.Vector([0.25, 0.0]))),
    "an attribute of an object with functions": (of_object, lambda patch: patch.setattr(HELP, "factor", 0.5)),
    "another object with functions": (of_object, lambda patch: patch.setattr(HERE, "HELP", Helper(0.5))),
    "what a function of Python returns": (of_python, lambda patch: patch.setattr(HERE, "OTHER", 0.5)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_taichi_compiles_in_counts(kind, monkeypatch):
    kernel, change = KINDS[kind]
    states, controls = uniform(0, 3, 1), uniform(1, 3, 1)
    before = KernelSystem(kernel, (1,), (1,))
    torch.testing.assert_close(before.step(states, controls), 2.0 * states + controls)
    with monkeypatch.context() as patch:
        change(patch)
        torch.testing.assert_close(KernelSystem(kernel, (1,), (1,)).step(states, controls), 0.5 * states + controls)
        with pytest.raises(SettingError, match="as its kernels were compiled"):
            before.step(states, controls)
    torch.testing.assert_close(before.step(states, controls), 2.0 * states + controls)


def test_a_vector_that_is_written_to_counts():
    vector = ti.Vector([2.0, 0.0])

    @ti.kernel
    def grow(state: ARRAY, control: ARRAY, next_state: ARRAY):
        for b in range(state.shape[0]):
            next_state[b, 0] = vector[0] * state[b, 0] + control[b, 0]

    states, controls = uniform(0, 3, 1), uniform(1, 3, 1)
    torch.testing.assert_close(KernelSystem(grow, (1,), (1,)).step(states, controls), 2.0 * states + controls)
    vector[0] = 5.0
    torch.testing.assert_close(KernelSystem(grow, (1,), (1,)).step(states, controls), 5.0 * states + controls)


def made(factor):
    """A kernel of a number that is a variable of this function, two functions of which each has a number of its own."""

    def scaled(by):
        @ti.func
        def scale(x):
            return by * x

        return scale

    one, other = scaled(10.0), scaled(100.0)

    @ti.kernel
    def grow(state: ARRAY, control: ARRAY, next_state: ARRAY):
        for b in range(state.shape[0]):
            next_state[b, 0] = factor * state[b, 0] + one(state[b, 0]) + other(state[b, 0]) + control[b, 0]

    def change(value, by):
        nonlocal factor, one
        factor, one = value, scaled(by)

    return grow, change


def test_variables_of_functions_around_the_kernel_count_each_by_itself():
    grow, change = made(2.0)
    states, controls = uniform(0, 3, 1), uniform(1, 3, 1)
    torch.testing.assert_close(KernelSystem(grow, (1,), (1,)).step(states, controls), 112.0 * states + controls)
    for value, by in ((5.0, 10.0), (5.0, 20.0)):
        change(value, by)
        found = KernelSystem(grow, (1,), (1,)).step(states, controls)
        torch.testing.assert_close(found, (value + by + 100.0) * states + controls)


def test_the_same_function_that_is_defined_again_is_the_same():
    states, controls = uniform(0, 3, 1), uniform(1, 3, 1)
    grow, change = made(2.0)
    system = KernelSystem(grow, (1,), (1,))
    first = system.step(states, controls)
    change(2.0, 10.0)
    assert torch.equal(system.step(states, controls), first)
    assert captured(made(2.0)[0]) == captured(grow)


class Late(VectorSystem):
    """Whose number is not there at first."""

    name, state_shape, control_shape, read_by_kernels = "late", (1,), (1,), ()

    @ti.func
    def advance(self, state, control):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ti.Vector([LATE * state[0] + self.plus(control[0])])

    @staticmethod
    @ti.func
    def plus(x):
        return OTHER * x

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ti.Vector([LATE * next_adjoint[0]]), ti.Vector([OTHER * next_adjoint[0]])


def test_a_number_that_comes_later_counts(monkeypatch):
    states, controls = uniform(0, 3, 1), uniform(1, 3, 1)
    with pytest.raises(engine.KernelError):
        Late().step(states, controls)
    for late, other in ((1.0, 2.0), (3.0, 2.0), (3.0, 4.0)):
        monkeypatch.setattr(HERE, "LATE", late)
        monkeypatch.setattr(HERE, "OTHER", other)
        torch.testing.assert_close(Late().step(states, controls), late * states + other * controls)


def test_a_system_that_has_stepped_may_be_pickled():
    system = Falling()
    system.step(uniform(0, 3, 1), uniform(1, 3, 1))
    assert isinstance(pickle.loads(pickle.dumps(system)), Falling)


def test_nothing_is_compiled_twice_where_nothing_changed(monkeypatch):
    monkeypatch.setattr(launch, "_compiled_anew", lambda *arguments: pytest.fail("compiled anew"))
    states = uniform(0, 3, 1)
    for build in BUILD.values():
        for _ in range(2):
            build().step(states, states)


def test_what_is_taken_is_named_as_it_is_read_and_nothing_else_is():
    (name, source), *rest = captured(fall)
    assert name == "force"
    assert "return -RATE * x" in source
    assert rest == [("RATE", "0.25"), ("PLACE.rate", "0.5"), ("PULL", "[1.0, 0.0]")]
    assert set(captured(fall)) <= set(captured(Falling))
    assert captured(stronger) == ()


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

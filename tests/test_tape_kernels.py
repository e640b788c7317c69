"""What kernels of a tape write again is put back for earlier adjoints, and adjoints that are wrong are refused."""

import warnings
from typing import Any

import pytest
import taichi as ti
import torch
from conftest import relative_error, tensor_options
from test_recorded import no_loss

import engine
from engine import AdjointError, RolloutTape
from engine.trials.isolation import available

A = ti.types.ndarray(ndim=1)


@pytest.fixture(autouse=True)
def compared():
    if not available():
        pytest.skip("adjoints are compared on the CPU of Linux")


def accuracy():
    return 1e-12 if engine.current().precision == "float64" else 2e-6


def inputs():
    return torch.linspace(0.3, 1.2, 6, **tensor_options()).requires_grad_()


def scratch():
    return torch.zeros(6, **tensor_options(), requires_grad=True)


@ti.kernel
def squares(x: A, y: A):
    for i in range(x.shape[0]):
        y[i] = x[i] * x[i]


@ti.kernel
def sines(x: A, y: A):
    for i in range(x.shape[0]):
        y[i] = ti.sin(x[i])


@ti.kernel
def cubes(y: A, loss: A):
    for i in range(y.shape[0]):
        loss[0] += y[i] ** 3


@ti.func
def assign(y: ti.template(), i, value):
    y[i] = value


@ti.kernel
def cosines_by_a_function(x: A, y: A):
    for i in range(x.shape[0]):
        assign(y, i, ti.cos(x[i]))


@ti.kernel
def weighted(x: A, weights: A, loss: A):
    for i in range(x.shape[0]):
        loss[0] += weights[i] * x[i] ** 2


def test_an_array_that_is_written_again_is_put_back_for_those_that_read_it_before():
    x, y, loss = inputs(), scratch(), no_loss()
    with RolloutTape(loss=loss):
        squares(x, y)
        cubes(y, loss)
        sines(x, y)
        cubes(y, loss)
        cosines_by_a_function(x, y)
        cubes(y, loss)
    alone = inputs()
    expected = (alone**6).sum() + (alone.sin() ** 3).sum() + (alone.cos() ** 3).sum()
    expected.backward()
    assert relative_error(x.grad, alone.grad) < accuracy()
    assert relative_error(loss.detach()[0], expected.detach()) < accuracy()
    assert relative_error(y.detach(), x.detach().cos()) < accuracy()


def test_what_was_put_back_is_not_left_behind_and_each_tape_begins_anew():
    x, y, found = inputs(), scratch(), []
    for _ in range(2):
        x.grad, loss = None, no_loss()
        with RolloutTape(loss=loss):
            squares(x, y)
            cubes(y, loss)
            sines(x, y)
        assert relative_error(y.detach(), x.detach().sin()) < accuracy()
        found.append(x.grad)
    assert relative_error(found[0], 6 * x.detach() ** 5) < accuracy()
    assert torch.equal(*found)


@pytest.mark.parametrize("learned", [False, True])
def test_what_torch_writes_to_an_array_that_a_kernel_read_is_refused(learned):
    x, weights, loss = inputs(), torch.ones(6, **tensor_options(), requires_grad=learned), no_loss()
    tape = RolloutTape(loss=loss)
    tape.__enter__()
    weighted(x, weights, loss)
    weights.detach().mul_(2.0)
    weighted(x, weights, loss)
    with pytest.raises(
        AdjointError, match=r"^Expected argument 'weights' of kernel 'weighted' as it .* a copy of it\.$"
    ):
        tape.__exit__(None, None, None)


@ti.kernel
def squares_in_place(x: A):
    for i in range(x.shape[0]):
        x[i] = x[i] * x[i]


@ti.kernel
def largest(x: A, loss: A):
    for i in range(x.shape[0]):
        ti.atomic_max(loss[0], x[i] * x[i])


@ti.kernel
def products(x: A):
    for _ in range(1):
        for i in range(1, x.shape[0]):
            x[i] = x[i - 1] * x[i]


@ti.kernel
def doubles_in_place(x: A):
    for i in range(x.shape[0]):
        x[i] = 2.0 * x[i]


@ti.kernel
def kinks(x: A, loss: A):
    for i in range(x.shape[0]):
        loss[0] += ti.max(x[i] - 0.5, 0.0) + ti.abs(x[i]) + ti.floor(3.0 * x[i]) * x[i]


@ti.kernel
def nests(x: A, loss: A):
    for i in range(x.shape[0]):
        value = x[i]
        for j in range(3):
            for _ in range(2 + 0 * j):
                value = 0.5 * value * value + x[i]
        loss[0] += 1e-3 * value


def tape_of(kernel):
    """A tape of one launch of a kernel on new arrays, and these."""
    loss = no_loss()
    arguments = (inputs(), loss)[: len(kernel._primal.arguments)]
    before = [argument.detach().clone() for argument in arguments]
    tape = RolloutTape(loss=loss)

    def run():
        with tape:
            kernel(*arguments)

    return run, arguments, before


SENTENCE = (
    r"^Expected the adjoint that Taichi makes of kernel '{}' to be its derivative, got .* for x\[\d\] where .*\.$"
)


@pytest.mark.float64
@pytest.mark.parametrize("kernel", [squares_in_place, largest, products])
def test_an_adjoint_that_is_not_the_derivative_is_refused_each_time(kernel):
    for _ in range(2):
        run, arguments, before = tape_of(kernel)
        with pytest.raises(AdjointError, match=SENTENCE.format(kernel.__name__)):
            run()
        assert all(torch.equal(one.detach(), other) for one, other in zip(arguments, before, strict=True))


@pytest.mark.float32
@pytest.mark.parametrize("kernel", [squares_in_place, largest, products])
def test_in_float32_it_is_told_once(kernel):
    run, _, _ = tape_of(kernel)
    with pytest.warns(engine.EvenflowWarning, match=SENTENCE.format(kernel.__name__)):
        run()
    run, _, _ = tape_of(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()


@pytest.mark.parametrize("kernel", [doubles_in_place, kinks, nests])
def test_an_adjoint_that_is_the_derivative_where_there_is_one_passes(kernel):
    x, loss = inputs(), no_loss()
    with warnings.catch_warnings(), RolloutTape(loss=loss):
        warnings.simplefilter("error")
        kernel(*(x, loss)[: len(kernel._primal.arguments)])
    if kernel is nests:
        alone = inputs()
        value = alone
        for _ in range(6):
            value = 0.5 * value * value + alone
        (1e-3 * value.sum()).backward()
        assert relative_error(x.grad, alone.grad) < 10 * accuracy()


def test_a_kernel_is_compared_once_for_each_shape_of_its_arrays(monkeypatch):
    from engine import recorded

    counted = []
    monkeypatch.setattr(recorded, "isolated", lambda work, seconds: counted.append(seconds))
    for count in (5, 5, 4, 5):
        loss = no_loss()
        with RolloutTape(loss=loss):
            cubes(torch.ones(count, **tensor_options(), requires_grad=True), loss)
    assert len(counted) == 2


@ti.data_oriented
class Scaled:
    """A kernel of an object, which reads what the object holds."""

    def __init__(self, scale):
        self.scale = scale

    @ti.kernel
    def fourth(self, x: A, loss: A, shift: float):
        for i in range(x.shape[0]):
            loss[0] += self.scale * (x[i] + shift) ** 4

    @ti.kernel
    def lost(self, x: A, loss: A):
        for i in range(x.shape[0]):
            ti.atomic_min(loss[0], -self.scale * x[i])


def test_kernels_of_objects_are_compared_too():
    x, loss = inputs(), no_loss()
    with RolloutTape(loss=loss):
        Scaled(2.0).fourth(x, loss, 0.5)
    assert relative_error(x.grad, 8 * (x.detach() + 0.5) ** 3) < accuracy()
    told: Any = pytest.raises(AdjointError) if x.dtype == torch.float64 else pytest.warns(engine.EvenflowWarning)
    with told as found, RolloutTape(loss=loss):
        Scaled(2.0).lost(x, loss)
    assert "of kernel 'lost' to be its derivative" in str(found.value if x.dtype == torch.float64 else found[0].message)

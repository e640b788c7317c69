"""Prepared launches: the same numbers as Taichi's own call, through raw pointers."""

import gc

import pytest
import taichi as ti
import torch
from children import ROOT, run_python
from conftest import tensor_options, uniform

import engine
from engine.launch import prepare, prepare_adjoint


@ti.kernel
def scale(source: ti.types.ndarray(ndim=1), factor: float, offset: int, target: ti.types.ndarray(ndim=1)):
    for i in range(source.shape[0]):
        target[i] = factor * source[i] + offset


@ti.kernel
def select(source: ti.types.ndarray(ndim=1), target: ti.types.ndarray(ndim=1), squared: ti.template()):
    for i in range(source.shape[0]):
        if ti.static(squared):
            target[i] = source[i] ** 2
        else:
            target[i] = source[i]


@ti.kernel
def tenth(target: ti.types.ndarray(ndim=1)):
    for i in range(target.shape[0]):
        target[i] = 0.1


@ti.kernel
def sine_product(left: ti.types.ndarray(ndim=1), right: ti.types.ndarray(ndim=1), product: ti.types.ndarray(ndim=1)):
    for i in range(left.shape[0]):
        product[i] = ti.sin(left[i]) * right[i]


@ti.data_oriented
class Shift:
    def __init__(self, distance):
        self.distance = distance

    @ti.kernel
    def apply(self, source: ti.types.ndarray(ndim=1), target: ti.types.ndarray(ndim=1)):
        for i in range(source.shape[0]):
            target[i] = source[i] + self.distance


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_prepared_launch_computes_what_the_plain_call_does():
    source = uniform(0, 20)
    plain, prepared = torch.zeros_like(source), torch.zeros_like(source)
    scale(source, 0.7, 3, plain)
    prepare(scale, source, 0.7, 3, prepared)()
    assert torch.equal(prepared, plain)
    torch.testing.assert_close(prepared, 0.7 * source + 3)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_launch_reads_its_tensors_anew_every_time():
    source = uniform(0, 20)
    target = torch.zeros_like(source)
    launch = prepare(scale, source, 2.0, 0, target)
    for _ in range(3):
        source += 1
        launch()
        torch.testing.assert_close(target, 2 * source)


@pytest.mark.cuda
@pytest.mark.float64
@pytest.mark.parametrize("squared", [True, False])
def test_template_arguments_take_no_place_among_the_launch_arguments(squared):
    source = uniform(0, 20)
    target = torch.zeros_like(source)
    prepare(select, source, target, squared)()
    assert torch.equal(target, source**2 if squared else source)


@pytest.mark.cuda
@pytest.mark.float64
def test_kernels_of_objects_see_their_own_object():
    source = uniform(0, 20)
    targets = [torch.zeros_like(source) for _ in range(2)]
    launches = [prepare(Shift(d).apply, source, target) for d, target in zip((1.0, 2.0), targets, strict=True)]
    for launch in launches:
        launch()
    assert torch.equal(targets[0], source + 1)
    assert torch.equal(targets[1], source + 2)


@pytest.mark.float64
def test_a_launch_keeps_its_tensors_alive():
    target = torch.zeros(1000, **tensor_options())
    launch = prepare(scale, torch.ones_like(target), 1.0, 0, target)
    gc.collect()
    scratch = [torch.zeros_like(target) for _ in range(10)]
    launch()
    assert torch.equal(target, torch.ones_like(target))
    assert not any(tensor.any() for tensor in scratch)


@pytest.mark.float64
def test_integers_serve_as_floats():
    source = uniform(0, 20)
    target = torch.zeros_like(source)
    prepare(scale, source, 2, 0, target)()
    assert torch.equal(target, 2 * source)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_constants_are_compiled_in_the_running_precision():
    target = torch.zeros(3, **tensor_options())
    prepare(tenth, target)()
    assert torch.equal(target, torch.full_like(target, 0.1))


@pytest.mark.cuda
def test_a_prepared_adjoint_computes_what_kernel_grad_does():
    left, right, seed = uniform(0, 20), uniform(1, 20), uniform(2, 20)
    leaves = [tensor.clone().requires_grad_() for tensor in (left, right, torch.zeros_like(left))]
    sine_product(*leaves)
    for leaf in leaves:
        leaf.grad = torch.zeros_like(left)
    leaves[2].grad = seed.clone()
    sine_product.grad(*leaves)

    buffers = [torch.zeros_like(left), torch.zeros_like(left), seed.clone()]
    prepare_adjoint(sine_product, (left, right, torch.zeros_like(left)), buffers)()
    for leaf, buffer in zip(leaves, buffers, strict=True):
        torch.testing.assert_close(buffer, leaf.grad, rtol=0, atol=0)
    torch.testing.assert_close(buffers[0], left.cos() * right * seed)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(20, 2).double()[:, 0], "Expected argument source to be contiguous, got strides (2,)"),
        (torch.zeros(20, device="meta").double(), "Expected argument source on cpu, got meta; call .to('cpu')."),
    ],
)
def test_tensors_that_a_pointer_cannot_describe_are_refused(tensor, message):
    with pytest.raises(engine.ShapeError) as error:
        prepare(scale, tensor, 1.0, 0, torch.zeros(20).double())
    assert str(error.value).startswith(message)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (torch.zeros(20, 2).double()[:, 0], "Expected the gradient of left to be contiguous, got strides (2,)"),
        (torch.zeros(20, device="meta").double(), "Expected the gradient of left on cpu, got meta"),
        (
            torch.zeros(10).double(),
            "Expected the gradient of left as torch.float64 of shape [20], got torch.float64 of shape [10].",
        ),
        (
            torch.zeros(20).float(),
            "Expected the gradient of left as torch.float64 of shape [20], got torch.float32 of shape [20].",
        ),
    ],
    ids=["strided", "elsewhere", "too short", "another precision"],
)
def test_gradient_buffers_that_a_pointer_cannot_describe_are_refused(buffer, message):
    left, right, product = (uniform(seed, 20) for seed in range(3))
    with pytest.raises(engine.ShapeError) as error:
        prepare_adjoint(sine_product, (left, right, product), [buffer, torch.zeros(20).double(), product.clone()])
    assert str(error.value).startswith(message)


WITHOUT_A_WAIT = """
import sys; sys.path.insert(0, TESTS)
import engine, torch
engine.init("cuda", "float32")
import test_launch
from engine.launch import prepare

source, target = torch.rand(2, 1000, device="cuda"), torch.zeros(1000, device="cuda")
# Half of a tensor: a copy of what is passed could not be seen through the whole.
launch = prepare(test_launch.scale, source[1], 2.0, 1, target)
source.neg_()  # CUDA loads a kernel when it is first used, for which it may wait
launch()
given, done = source[1].clone(), torch.cuda.Event()
torch.cuda.synchronize()
torch.cuda._sleep(2_000_000_000)
done.record()
source.neg_()
launch()
assert not done.query(), "the host waited for the device, to which arrays were copied"
torch.testing.assert_close(target, 1 - 2 * given)
assert done.query()
print("launched")
"""


@pytest.mark.card
@pytest.mark.float32
def test_cuda_kernels_work_on_the_memory_of_torch_in_the_order_of_torch():
    done = run_python(WITHOUT_A_WAIT.replace("TESTS", repr(str(ROOT / "tests"))))
    assert done.stdout.splitlines()[-1] == "launched"


@pytest.mark.cuda
def test_adjoints_equal_those_of_the_formula():
    left, right, seed = uniform(0, 20), uniform(1, 20), uniform(2, 20)
    buffers = [torch.zeros_like(left), torch.zeros_like(left), seed.clone()]
    prepare_adjoint(sine_product, (left, right, torch.zeros_like(left)), buffers)()
    torch.testing.assert_close(buffers[0], left.cos() * right * seed)
    torch.testing.assert_close(buffers[1], left.sin() * seed)

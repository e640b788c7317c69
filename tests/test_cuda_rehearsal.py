"""What CUDA does differently, rehearsed on the CPU: launches that repeat, and what is refused before one."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import taichi as ti
import torch
from children import ROOT, run_python
from conftest import tensor_options, uniform

import engine
from engine import launch, runtime
from engine.modes import plain_torch
from engine.plan import MOST_ELEMENTS

pytestmark = pytest.mark.float64

CHILD = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
LAUNCHES = """
import rehearsal
launcher = rehearsal.start()
import torch
import test_launch
from engine.launch import prepare, prepare_adjoint

source, target = torch.arange(8.0).double(), torch.zeros(8).double()
launch = prepare(test_launch.scale, source, 2.0, 1, target)
seed, buffers = torch.ones(8).double(), [torch.zeros(8).double() for _ in range(3)]
adjoint = prepare_adjoint(test_launch.sine_product, (source, source, target), buffers)
for _ in range(3):
    source += 1
    launch()
    assert torch.equal(target, 2 * source + 1)
    buffers[0].zero_(), buffers[1].zero_(), buffers[2].copy_(seed)
    adjoint()
    torch.testing.assert_close(buffers[0], source.cos() * source)
print(launcher.launches)
"""
WITHOUT_THE_CURE = """
import functools
from engine import launch
launch._on_cuda = lambda submit, contexts, what: functools.partial(submit, contexts())
"""
UPDATES = """
import json
import engine, rehearsal
from training import Member, Trainer, TrainingSettings, build_task
from training.gradients import gradient_named

def losses():
    settings = TrainingSettings(train_samples=4, batch_size=2, test_samples=2, memory=MEMORY)
    members = [Member(gradient_named(name).estimator) for name in ("R", "C")]
    trainer = Trainer(build_task(TASK, **OPTIONS), members, settings)
    return [loss for record in trainer.fit(2) for loss in (*record.train_loss, *record.test_loss)]

engine.init("cpu", "float64", threads=1)
expected = losses()
launcher = rehearsal.start()
print(json.dumps([expected, losses(), launcher.launches]))
"""
TASKS = {
    "cart-pole": ({"horizon": 8}, None),
    "cart-pole in segments": ({"horizon": 700}, "22MiB"),
    "fluid": ({"particles": 60, "jets": 2, "horizon": 2, "duration": 0.02}, None),
    "swarm": ({"evaders": 30, "drivers": 2, "horizon": 3, "radius": 0.5}, None),
}


def test_prepared_launches_and_adjoints_can_be_repeated():
    assert run_python(CHILD + LAUNCHES).stdout.splitlines()[-1] == "6"


def test_the_rehearsal_ends_a_process_that_uses_a_context_twice():
    with pytest.raises(AssertionError):
        run_python(CHILD + WITHOUT_THE_CURE + LAUNCHES)


@pytest.mark.parametrize("case", TASKS)
def test_trainings_launch_on_cuda_again_and_again_and_find_what_the_cpu_finds(case):
    options, memory = TASKS[case]
    source = UPDATES.replace("TASK", repr(case.split()[0])).replace("OPTIONS", repr(options))
    done = run_python(CHILD + source.replace("MEMORY", repr(memory)))
    expected, found, launches = json.loads(done.stdout.splitlines()[-1])
    assert launches > 0
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=0)


@pytest.fixture
def on_cuda(monkeypatch):
    """The runtime says that it runs on CUDA, where torch is on the stream that the test puts into what is returned."""
    stream = SimpleNamespace(cuda_stream=0, captures=False)
    monkeypatch.setattr(runtime, "_current", dataclasses.replace(engine.current(), backend="cuda"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.captures)
    return stream


@ti.kernel
def double(source: ti.types.ndarray(ndim=1), target: ti.types.ndarray(ndim=1)):
    for i in range(source.shape[0]):
        target[i] = 2.0 * source[i]


@pytest.mark.parametrize(("captures", "what"), [(False, "another stream"), (True, "a graph that is captured")])
def test_launches_beside_the_default_stream_are_refused(captures, what, on_cuda):
    source, target = uniform(0, 4), torch.zeros(4, **tensor_options())
    run = launch.prepare(double, source, target)
    on_cuda.cuda_stream, on_cuda.captures = 94, captures
    with pytest.raises(engine.BackendError, match=f"torch's default stream, .*, got {what};"):
        run()
    assert not target.any()
    on_cuda.cuda_stream = 0
    run()
    assert torch.equal(target, 2 * source)


def test_steps_beside_the_default_stream_are_refused(on_cuda):
    on_cuda.cuda_stream = 94
    with pytest.raises(engine.BackendError, match="got another stream;"):
        engine.CartPole(1).step(uniform(0, 2, 4), uniform(1, 2, 1))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "[cuda_driver.h:operator()@92] CUDA Error CUDA_ERROR_OUT_OF_MEMORY: out of memory while calling "
            "malloc_async (cuMemAllocAsync)",
            "Expected room on the device for kernel 'double', got none left; lower the batch, or give a memory budget.",
        ),
        (
            "CUDA Error CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered.\nmore",
            "Expected kernel 'double' to run on the device, got 'CUDA Error CUDA_ERROR_ILLEGAL_ADDRESS: an illegal "
            "memory access was encountered'; start another process, since this one cannot use the device any more.",
        ),
    ],
    ids=["no memory", "another failure"],
)
def test_a_launch_that_cuda_does_not_make_is_told_in_a_sentence(said, told):
    def submit(context):
        raise RuntimeError(said)

    with pytest.raises(engine.BackendError) as error:
        launch._on_cuda(submit, lambda: None, "kernel 'double'")()
    assert str(error.value) == told


def test_torch_without_memory_on_the_device_is_told_in_a_sentence():
    @plain_torch
    def greedy():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    with pytest.raises(engine.BackendError, match="Expected room on the device for what torch computes, got none left"):
        greedy()


def test_arrays_that_kernels_cannot_index_are_refused():
    tensor = torch.zeros(1, **tensor_options()).expand(MOST_ELEMENTS + 1)
    with pytest.raises(engine.ShapeError, match=f"Expected argument source with at most {2**31 - 1} elements"):
        launch.prepare(double, tensor, torch.zeros(1, **tensor_options()))


def test_a_tensor_on_another_device_of_the_same_kind_is_refused(monkeypatch):
    # The CPU has one device only; torch's meta device stands for two of a kind.
    first, second = (torch.device("meta", index) for index in range(2))
    monkeypatch.setattr(runtime, "_current", dataclasses.replace(engine.current(), device=first))
    tensor: Any = SimpleNamespace(numel=lambda: 1, is_contiguous=lambda: True, device=second)
    with pytest.raises(engine.ShapeError, match=r"Expected state on meta:0, got meta:1; call .to\('meta:0'\)"):
        launch.check_memory("state", tensor)
    tensor.device = first
    launch.check_memory("state", tensor)


def test_a_loss_on_another_device_is_refused():
    loss = torch.zeros(1, device="meta", dtype=torch.float64, requires_grad=True)
    with pytest.raises(engine.ShapeError, match="Expected a loss on cpu, where kernels add to it, got meta"):
        engine.RolloutTape(loss=loss)


def test_torch_leaves_room_for_launches(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**34))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *values: asked.append(values))
    runtime._leave_room(torch.device("cuda", 0))
    assert asked == [(1 - 2**29 / 2**34, torch.device("cuda", 0))]


CELLS = """
import dataclasses, math
import engine, rehearsal, torch
from engine.particles.neighbours import Neighbours
from test_neighbours import SPACES

engine.init("cpu", "float64", threads=1)
draw = torch.Generator().manual_seed(0)
cases = []
for dim, period in SPACES.values():
    for radius in (0.2, 0.9, 50.0):
        positions = 6.0 * torch.rand(3, dim, 70, generator=draw, dtype=torch.float64) - 3.0
        positions[0, 0, 5], positions[1, dim - 1, 9], positions[2, 0, :3] = math.nan, math.inf, 1e6
        neighbours = Neighbours(dim, 70, radius, period)
        cases.append((dim, period, radius, positions, neighbours.cells(3), neighbours.pairs(positions)))
launcher = rehearsal.start()
for dim, period, radius, positions, expected, pairs in cases:
    neighbours = Neighbours(dim, 70, radius, period)
    found, before = neighbours.cells(3), launcher.launches
    found.build(positions)
    assert launcher.launches == before + 2
    for name in ("order", "cell", "starts", "_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), (dim, period, radius, name)
    assert torch.equal(neighbours.pairs(positions), pairs)
    positions[:, 0, ::3] = 1e30  # too far out for a cell of its own
    assert torch.equal(neighbours.pairs(positions), neighbours.pairs(positions))
    assert 0 <= found.cell.min() <= found.cell.max() < found.starts.shape[1] - 1
print(len(cases))
"""


SUMS = """
import engine, rehearsal, torch
from engine.systems.swarm import Swarm

def swarms():
    return [Swarm(*size, radius=1.0, mean_centre=True) for size in ((1, 1), (3, 33), (5, 1500))]

def found():
    results, draw = [], torch.Generator().manual_seed(0)
    for system in swarms():
        state, control, adjoint = (
            torch.rand(3, *shape, generator=draw, dtype=torch.float64) - 0.5
            for shape in (system.state_shape, system.control_shape, system.state_shape)
        )
        results.append((system.step(state, control), *system.pull_back(state, control, adjoint)))
    return results

engine.init("cpu", "float64", threads=1)
expected = found()
launcher = rehearsal.start()
assert [system._chunks for system in swarms()] == [1, 2, 40]
for on_device, on_cpu in zip(found(), expected):
    for one, other in zip(on_device, on_cpu):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
print(launcher.launches)
"""


def test_sums_over_evaders_in_chunks_are_those_of_the_cpu():
    # Keys, places and the gather, forward and back; the sums besides where there are chunks.
    assert int(run_python(CHILD + SUMS).stdout.splitlines()[-1]) == 3 * 2 * 3 + 2 * 2


def test_cells_found_by_one_sort_of_all_samples_are_those_of_the_cpu():
    assert int(run_python(CHILD + CELLS).stdout.splitlines()[-1]) == 21

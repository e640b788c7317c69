"""Loops of kernels on devices: bounds are constants, so that a kernel launches as many blocks as it has work for."""

import re
from collections import Counter

import pytest
import torch
from children import ROOT, run_python

from engine import runtime
from engine.loops import Loop, loop_over

pytestmark = pytest.mark.float64

# Taichi prints what it compiles for CUDA; of the kernels that it makes for itself none has a multiple of 7.
PRINTED = """
import os, sys; sys.path.insert(0, TESTS)
os.environ["TI_OFFLINE_CACHE"] = "0"  # what is found there is not compiled
import engine, rehearsal, torch
BACKEND
import taichi as ti
from contract import START, prepare_sweep, sweep_buffers
from engine.noise import NoiseSource
from engine.particles.neighbours import Neighbours
from engine.systems.fluid import Fluid
from engine.systems.swarm import Swarm

swarm, fluid = Swarm(1, 70, radius=0.5), Fluid(20, 1, (1.0, 1.0), 0.1)
bodies = engine.NBody((1.0, 1.0, 1.0), (0,))
for system in (engine.CartPole(1), engine.QuantumBox(5), engine.Guidance(1, 2), bodies, swarm, fluid)[:SYSTEMS]:
    state, control = (torch.zeros(SAMPLES, *shape).double() for shape in (system.state_shape, system.control_shape))
    ti.cfg.print_ir = True
    system.prepare_step(state, control, state.clone())
    system.prepare_pull_back(state, control, state.clone(), state.clone(), control.clone())
    prepare_sweep(system, sweep_buffers(system, state.expand(3, *state.shape).contiguous(), control.expand(
        2, *control.shape).contiguous()), slice(0, SAMPLES), engine.FULL)
    ti.cfg.print_ir = False

ti.cfg.print_ir = True
NoiseSource(0, 1.0, 3, SAMPLES, 1, (5,))
places = torch.zeros(SAMPLES, 2, 11).double()
neighbours = Neighbours(2, 11, 0.5)
neighbours.pairs(places), neighbours.candidates(places)
"""


def bounds(start, samples, systems):
    """How often each kind of parallel loop is printed for the first systems, among the passes over their kernels."""
    source = PRINTED.replace("TESTS", repr(str(ROOT / "tests"))).replace("BACKEND", start)
    printed = run_python(source.replace("SAMPLES", str(samples)).replace("SYSTEMS", str(systems))).stdout
    return Counter(re.findall(r"offloaded range_for(\([^)]*\)+) ", printed))


def test_on_cuda_every_loop_has_constant_bounds():
    seen = bounds("rehearsal.start()", 7, 6)
    assert not [bound for bound in seen if "tmp" in bound]
    # Samples; particles of samples: 3 of guidance and of n-body, 21 and 20 of fluid with its jet and without, 71 and 70
    # of a swarm with its driver and without; its 3 chunks of evaders, for their places and for the driver besides.
    assert {f"(0, {7 * rows})" for rows in (1, 3, 20, 21, 70, 71, 6)} <= set(seen)
    # Noise of 3 pairs of components in 3 slots; 11 particles that are sorted, and their neighbours.
    assert {f"(0, {7 * rows})" for rows in (9, 11)} <= set(seen)


def test_on_the_cpu_one_kernel_serves_every_number_of_samples():
    seen = bounds("engine.init('cpu', 'float64', threads=1)", 700, 1)
    assert [bound for bound in seen if "tmp" in bound]
    assert "(0, 700)" not in seen


def test_loops_on_devices_know_their_number_and_small_blocks_are_for_samples(monkeypatch):
    assert loop_over(600) == Loop(False)
    assert loop_over(8) == loop_over(8, 4) == Loop(True)
    assert (loop_over(1, 600).serial, loop_over(1, 600, 50).serial, loop_over(1, 600, 600).serial) == (
        False,
        True,
        False,
    )
    for backend, block in (("cuda", 32), ("vulkan", None)):
        monkeypatch.setattr(
            runtime, "_current", runtime.Runtime(backend, "float32", 1, torch.device("cpu"), torch.float32)
        )
        assert loop_over(8) == Loop(False, 8, block, 1)
        assert loop_over(8, 1000, 20) == Loop(False, 8, None, 1000)


def test_the_states_of_random_generators_take_little_of_a_device(monkeypatch):
    class Properties:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    grid = runtime._grid()
    assert grid == {"saturating_grid_dim": 16 * 132, "max_block_dim": 256}
    assert all(isinstance(getattr(runtime.ti.cfg, name), int) for name in grid)
    # Taichi keeps 20 bytes for each thread.
    assert 20 * grid["saturating_grid_dim"] * grid["max_block_dim"] < 11e6

"""CUDA imitated on the CPU, as far as it decides whether prepared launches can be repeated.

Taichi 1.7.4 launches on CUDA with a copy of the arguments on the device (`runtime/cuda/kernel_launcher.cpp`, line 156):
it leaves the address of that copy, which it has freed, in the launch context, and whoever sets an argument of that
context again, as the launcher itself does at its next launch, writes there.

Run in a process of its own: `start` changes what the process runs on, and what it rehearses may end it.
"""

import ctypes
import dataclasses
from types import SimpleNamespace

import torch
from taichi.lang import impl

import engine
from engine import one_launch, runtime
from policies import slots, trace

FREED = 0x7F1234000000


class Launcher:
    """Taichi's program, but for launches, after which the context holds an address that is not of this process."""

    def __init__(self, program):
        self.program, self.launches = program, 0

    def __getattr__(self, name):
        return getattr(self.program, name)

    def launch_kernel(self, data, context):
        self.launches += 1
        self.program.launch_kernel(data, context)
        _argument_buffer(context).value = FREED


def _argument_buffer(context):
    """The word of a launch context of taichi==1.7.4 in which the address of its arguments stands."""
    word = lambda address: ctypes.c_uint64.from_address(address)  # noqa: E731
    builder = word(id(context) + object.__basicsize__).value
    owned, used, buffer = (word(builder + 8 * place).value for place in (1, 2, 3))
    assert owned == used, "another layout than that of taichi==1.7.4"
    assert word(used).value == buffer, "another layout than that of taichi==1.7.4"
    return word(used)


def start(precision="float64"):
    """A runtime that takes itself for one on CUDA; returns the launcher."""
    engine.init("cpu", precision, threads=1)
    runtime._current = dataclasses.replace(engine.current(), backend="cuda")
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0)
    one_launch.in_blocks = lambda: False  # a CPU has none
    # Products go straight where they belong, as a device's do.
    slots.on_cpu = trace.on_cpu = lambda tensor: False
    launcher = impl.get_runtime().prog = Launcher(impl.get_runtime().prog)
    return launcher

"""A whole segment of a rollout in one launch: a controller that acts inside the kernel, and the system's own step.

The engine knows nothing of networks: a controller hands out an object with the functions that act and the arrays that
they read and write, and a system the function that advances one sample. On the CPU a few samples of a member are taken
together, one after another in each thread; on CUDA and Vulkan by a block of threads.
"""

import math
from dataclasses import dataclass

import taichi as ti
import torch
from taichi.lang import impl

from engine import runtime
from engine.controller import ActsInKernel, Controller
from engine.launch import Launch, prepare
from engine.noise import CONTROL, STATE
from engine.parts import Parts
from engine.plan import MOST_ELEMENTS
from engine.sharing import compiled_for
from engine.system import System

# Samples from which threads share a launch; waking them gains nothing for fewer.
_SHARED_SAMPLES = 64
# Taichi hands out iterations to CPU threads by at least as many.
_SHARE = 512


def in_blocks() -> bool:
    """Whether kernels run in blocks of threads, which share memory."""
    return runtime.current().backend != "cpu"


def offered(system: System, controller: Controller, parts: Parts, batch: int) -> bool:
    """Whether system and controller both have what a rollout in one launch takes, and nothing is called between steps.

    Noise and parameters that vary between samples are taken along; what an observation sees and where samples end are
    functions of tensors. A controller also declines where steps one by one are faster.
    """
    acts = getattr(controller, "acts_in_kernel", None)
    if acts is None or parts.calls_between_steps or not system.advances_in_kernel():
        return False
    return acts(batch, in_blocks())


class OneLaunch:
    """The launches of segments, made when first asked for.

    Args:
        system, parts: of a trajectory for which a rollout in one launch is `offered`.
        acts: the controller's trace.
        states: [S+1, B, *state_shape]; controls: [S, B, *control_shape]: the slots.
        places: of slots in the trace: one for each, or one that all share.
    """

    def __init__(
        self,
        system: System,
        parts: Parts,
        acts: ActsInKernel,
        states: torch.Tensor,
        controls: torch.Tensor,
        places: int,
    ):
        self._system, self._parts, self._acts = system, parts, acts
        self._states, self._controls, self._places = states.detach(), controls, places
        self._launches: dict[tuple[int, int, bool], Launch] = {}
        self._prepared(0, len(controls), moves=True)  # what cannot be compiled is told now

    @staticmethod
    def indexes(acts: ActsInKernel) -> bool:
        """Whether kernels can index all that a trace keeps."""
        return acts.in_kernel(in_blocks()).memory.numel() <= MOST_ELEMENTS

    def run(self, first: int, last: int) -> None:
        """Compute the slots [first, last) from the state in the first."""
        self._prepared(first, last, moves=True)()

    def show(self, first: int, last: int) -> None:
        """Have the controller act on the states in the slots [first, last)."""
        # Vulkan is not sent what a kernel only writes, and would lose the controls of other slots.
        kept = self._controls.clone() if runtime.current().backend == "vulkan" else None
        self._prepared(first, last, moves=False)()
        if kept is not None:
            self._controls[:first].copy_(kept[:first])
            self._controls[last:].copy_(kept[last:])

    def _prepared(self, first: int, last: int, moves: bool) -> Launch:
        key = (first, last, moves)
        if key not in self._launches:
            self._launches[key] = self._prepare(*key)
        return self._launches[key]

    def _prepare(self, first: int, last: int, moves: bool) -> Launch:
        batch, blocks = self._states.shape[1], in_blocks()
        acting = self._acts.in_kernel(blocks)
        members = len(acting.theta)
        each = batch // members
        groups = members * -(-each // acting.rows)
        serial = batch < _SHARED_SAMPLES or groups == 1
        share = 1 if blocks or serial or groups >= _SHARE * runtime.current().threads else _SHARE
        physical, noise = self._parts.of_system, self._parts.noise
        arrays = (self._states, self._controls, acting.theta.view(-1), acting.memory)
        stand_in = self._controls
        setting = _Setting(
            acting.rows, groups if blocks else 0, acting.act.threads, serial, share, moves, physical is not None,
            STATE in noise, CONTROL in noise, *map(math.prod, (self._system.state_shape, self._system.control_shape)),
        )  # fmt: skip
        return prepare(
            _by_blocks if blocks else _by_rows, compiled_for(self._system), acting.act, setting, *arrays,
            self._system.rows_or_none(physical), noise.get(STATE, stand_in), noise.get(CONTROL, stand_in),
            acting.theta.shape[1], each, self._places, first, last,
        )  # fmt: skip


@dataclass(frozen=True)
class _Setting:
    """What a kernel is compiled for.

    Attributes:
        rows: samples taken together.
        groups: of all samples, for blocks, whose loop needs a constant bound; threads: of a block.
        serial: whether one thread of the CPU takes all groups; share: iterations that one takes otherwise.
        moves: whether the system advances, or states are given; varied, state_noise, control_noise: what else there is.
        state_size, control_size: numbers of a state and of a control.
    """

    rows: int
    groups: int
    threads: int
    serial: bool
    share: int
    moves: bool
    varied: bool
    state_noise: bool
    control_noise: bool
    state_size: int
    control_size: int


@ti.func
def element(array: ti.template(), t, b, i):
    """Number i of sample b at t, of vectors or of matrices row by row."""
    result = ti.cast(0, float)
    if ti.static(len(array.shape) == 3):
        result = array[t, b, i]
    else:
        result = array[t, b, i // array.shape[3], i % array.shape[3]]
    return result


@ti.func
def assign(array: ti.template(), t, b, i, value):
    """Set that number."""
    if ti.static(len(array.shape) == 3):
        array[t, b, i] = value
    else:
        array[t, b, i // array.shape[3], i % array.shape[3]] = value


@ti.func
def _disturb(array: ti.template(), at, noise: ti.template(), t, b, count: ti.template()):
    for i in range(count):
        assign(array, at, b, i, element(array, at, b, i) + element(noise, t, b, i))


@ti.func
def _advance(
    system: ti.template(),
    setting: ti.template(),
    states: ti.template(),
    controls: ti.template(),
    physical: ti.template(),
    state_noise: ti.template(),
    control_noise: ti.template(),
    t,
    b,
):
    """x_{t+1} of sample b, and the noise of u_t and of it."""
    if ti.static(setting.control_noise):
        _disturb(controls, t, control_noise, t, b, setting.control_size)
    if ti.static(setting.moves):
        system.advance_at(states, controls, t, b, physical, setting.varied)
        if ti.static(setting.state_noise):
            _disturb(states, t + 1, state_noise, t, b, setting.state_size)


@ti.func
def _chunks(each, setting: ti.template()):
    """Groups of a member."""
    return (each + setting.rows - 1) // setting.rows


@ti.kernel
def _by_rows(
    system: ti.template(),
    act: ti.template(),
    setting: ti.template(),
    states: ti.types.ndarray(),
    controls: ti.types.ndarray(),
    theta: ti.types.ndarray(ndim=1),
    memory: ti.types.ndarray(ndim=1),
    physical: ti.types.ndarray(ndim=2),
    state_noise: ti.types.ndarray(),
    control_noise: ti.types.ndarray(),
    stride: int,
    each: int,
    places: int,
    first: int,
    last: int,
):
    ti.loop_config(serialize=setting.serial)
    for iteration in range(states.shape[1] // each * _chunks(each, setting) * setting.share):
        if iteration % setting.share == 0:
            group = iteration // setting.share
            member, start = group // _chunks(each, setting), group % _chunks(each, setting) * setting.rows
            # The last group begins where it ends with its member's samples, and skips those of the one before.
            skipped = ti.max(0, start + setting.rows - each)
            start -= skipped
            b, own = member * each + start, member * stride
            for t in range(first, last):
                kept = (member * places + ti.min(t, places - 1)) * each + start
                act.on_rows(element, assign, states, controls, theta, memory, t, own, b, kept, skipped, setting.rows)
                for r in range(skipped, setting.rows):
                    _advance(system, setting, states, controls, physical, state_noise, control_noise, t, b + r)


@ti.kernel
def _by_blocks(
    system: ti.template(),
    act: ti.template(),
    setting: ti.template(),
    states: ti.types.ndarray(),
    controls: ti.types.ndarray(),
    theta: ti.types.ndarray(ndim=1),
    memory: ti.types.ndarray(ndim=1),
    physical: ti.types.ndarray(ndim=2),
    state_noise: ti.types.ndarray(),
    control_noise: ti.types.ndarray(),
    stride: int,
    each: int,
    places: int,
    first: int,
    last: int,
):
    # Bounds are constants, so that every thread of a block comes to every barrier.
    ti.loop_config(block_dim=setting.threads)
    for thread in range(setting.groups * setting.threads):
        group, lane = thread // setting.threads, thread % setting.threads
        member, start = group // _chunks(each, setting), group % _chunks(each, setting) * setting.rows
        b, most, own = member * each + start, ti.min(setting.rows, each - start) - 1, member * stride
        n, m = ti.static(setting.state_size, setting.control_size)
        shared = ti.simt.block.SharedArray((ti.static(act.shared(setting.rows)),), impl.get_runtime().default_fp)
        for t in range(first, last):
            # A thread reads of `states` and `controls` only what it wrote itself.
            if lane <= most:
                for i in range(n):
                    shared[lane * n + i] = element(states, t, b + lane, i)
            ti.simt.block.sync()
            kept = (member * places + ti.min(t, places - 1)) * each + start
            act.in_block(shared, theta, memory, own, kept, most, lane, setting.rows)
            ti.simt.block.sync()
            if lane <= most:
                for j in range(m):
                    assign(controls, t, b + lane, j, shared[setting.rows * n + lane * m + j])
                _advance(system, setting, states, controls, physical, state_noise, control_noise, t, b + lane)

"""Networks that act inside a kernel: what a whole rollout in one launch computes between two steps of physics.

On the CPU a few samples at a time share every weight that is loaded, and an inner loop runs over as many units as a
vector register holds, with sums that never leave the registers. On CUDA and Vulkan a block of threads takes a few
samples, one thread a unit; activations go from layer to layer through memory that the block shares.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import taichi as ti
import torch

from policies.tanh import tanh

LANE_BYTES = 32
"""Of the units that the CPU computes side by side."""
ROWS = 8
"""Samples that the CPU computes side by side."""
# Weights that a core's second cache holds, so that all samples read them from there.
_CPU_WEIGHTS = 2**16
# Multiplications of a member's step up to which calls between steps cost more than torch's products gain.
_CPU_WORK = 2**20
MOST_UNITS = 256
"""Of a layer that a block of threads computes, a thread each."""
# Blocks from which every multiprocessor of a large card has several; below it, more of them hide more waiting.
_ENOUGH_BLOCKS = 1024
# What every device has for the threads of a block to share.
_SHARED_BYTES = 2**15
_LEAST_THREADS = 32


@ti.func
def countable(index, count: ti.template()):
    """The index in a form that tells LLVM that counting `count` on from it does not overflow.

    Else it keeps a second loop for that, and the sums in memory instead of registers.
    """
    return ti.min(index, ti.static(2**31 - 1 - count))


@dataclass(frozen=True)
class DenseInKernel:
    """u = W_L tanh(... tanh(W_1 x + b_1) ...) + b_L on samples of one member, with what a kernel is compiled for.

    Samples follow each other from b on. Their member's parameters begin at `own` in `theta`. Inputs and activations
    stay in `memory`, in one row for each sample from row `kept` on.

    Attributes:
        widths: of the input, the hidden layers and the output.
        strides: row lengths of the buffers that follow each other in `memory`, one for the inputs of every layer with
            a 1 at the end.
        lanes: units that the CPU computes side by side.
        threads: of a block, a power of two.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    lanes: int
    threads: int

    @property
    def weights(self) -> tuple[int, ...]:
        """Where in a member's parameters the weights of each layer begin."""
        counts = [(inputs + 1) * outputs for inputs, outputs in pairwise(self.widths)]
        return tuple(accumulate(counts[:-1], initial=0))

    @property
    def widest(self) -> int:
        return max(self.widths[1:-1], default=1)

    def parts(self, rows: int) -> int:
        """Into how many parts the sum of one output is cut, a thread each."""
        spare = self.threads // (rows * self.widths[-1])
        return next((parts for parts in (16, 8, 4, 2) if parts <= spare), 1)

    @ti.func
    def _at(self, memory: ti.template(), layer: ti.template(), kept):
        """Where the inputs of a layer begin."""
        every, before = ti.static(sum(self.strides), sum(self.strides[:layer]))
        return memory.shape[0] // every * before + kept * ti.static(self.strides[layer])

    @ti.func
    def on_rows(
        self, read: ti.template(), write: ti.template(), states: ti.template(), controls: ti.template(),
        theta: ti.template(), memory: ti.template(), t, own, b, kept, skipped, rows: ti.template(),
    ):  # fmt: skip
        """Act on `rows` samples, in lanes of units; of the first few, `skipped`, nothing is written.

        `read(states, t, b, i)` is number i of a state, `write(controls, t, b, i, u)` sets number i of a control.
        """
        for r in range(rows):
            row = ti.max(r, skipped)
            for i in range(ti.static(self.widths[0])):
                memory[self._at(memory, 0, kept + row) + i] = read(states, t, b + row, i)
        for layer in ti.static(range(len(self.widths) - 1)):
            inputs, units, stride = ti.static(self.widths[layer] + 1, self.widths[layer + 1], self.strides[layer])
            lanes = ti.static(min(self.lanes, units))
            source = countable(self._at(memory, layer, kept), ti.static((rows - 1) * stride + inputs))
            for block in range(ti.static(-(-units // lanes))):
                # The last block begins where it ends with the layer, and repeats some units of the one before.
                first = ti.min(block * lanes, ti.static(units - lanes))
                weights = own + ti.static(self.weights[layer])
                place = countable(weights + first, ti.static((inputs - 1) * units + lanes))
                sums = [ti.Vector.zero(float, lanes) for _ in ti.static(range(rows))]
                for k in range(inputs):
                    inward = [memory[source + r * stride + k] for r in ti.static(range(rows))]
                    for lane in range(lanes):
                        weight = theta[place + k * units + lane]
                        for r in ti.static(range(rows)):
                            sums[r][lane] += inward[r] * weight
                # What is skipped goes where what is right is written after it.
                if ti.static(layer < len(self.widths) - 2):
                    for lane in range(lanes):
                        for r in ti.static(range(rows)):
                            sums[r][lane] = tanh(sums[r][lane])
                    for r in ti.static(range(rows)):
                        row = kept + ti.max(r, skipped)
                        to = countable(self._at(memory, ti.static(layer + 1), row) + first, lanes)
                        for lane in range(lanes):
                            memory[to + lane] = sums[r][lane]
                else:
                    for r in ti.static(range(rows)):
                        for lane in range(lanes):
                            write(controls, t, b + ti.max(r, skipped), first + lane, sums[r][lane])

    def shared(self, rows: int) -> int:
        """Numbers that `in_block` shares: inputs, outputs, two layers of units by turns, parts of outputs."""
        return rows * (self.widths[0] + self.widths[-1] * (1 + self.parts(rows)) + 2 * self.widest)

    def places(self, rows: int) -> tuple[int, ...]:
        """Where the inputs of each layer begin among them, and last where the parts of outputs do."""
        units = rows * (self.widths[0] + self.widths[-1])
        by_turns = [units + layer % 2 * rows * self.widest for layer in range(len(self.widths) - 2)]
        return (0, *by_turns, units + 2 * rows * self.widest)

    @ti.func
    def in_block(
        self,
        shared: ti.template(),
        theta: ti.template(),
        memory: ti.template(),
        own,
        kept,
        most,
        lane,
        rows: ti.template(),
    ):
        """Act on states of `rows` samples, the first of the numbers `shared` by a block; controls come after them.

        Of samples more than `most` after the first nothing is kept.

        Every thread calls it, with its number as `lane`, after a barrier and before another.
        """
        layers, threads, places = ti.static(len(self.widths) - 1, self.threads, self.places(rows))
        inputs = ti.static(self.widths[0])
        # Read, since Vulkan is not sent what a kernel only writes, and would lose all that this one does not.
        one = memory[self._at(memory, 0, kept) + inputs]
        for turn in range(ti.static(-(-rows * inputs // threads))):
            number = lane + turn * threads
            if number < rows * inputs and number // inputs <= most:
                memory[self._at(memory, 0, kept + number // inputs) + number % inputs] = shared[number]
        for layer in ti.static(range(layers - 1)):
            source, target = ti.static(places[layer], places[layer + 1])
            width, units = ti.static(self.widths[layer], self.widths[layer + 1])
            if lane < units:
                column = own + ti.static(self.weights[layer]) + lane
                sums = ti.Vector.zero(float, rows)
                for k in range(width):
                    weight = theta[column + k * units]
                    for r in ti.static(range(rows)):
                        sums[r] += shared[source + r * width + k] * weight
                for r in ti.static(range(rows)):
                    unit = tanh(sums[r] + one * theta[column + width * units])
                    shared[target + r * units + lane] = unit
                    if r <= most:
                        memory[self._at(memory, ti.static(layer + 1), kept + r) + lane] = unit
            ti.simt.block.sync()
        self._outputs_in_block(shared, theta, own, one, lane, rows)

    @ti.func
    def _outputs_in_block(self, shared: ti.template(), theta: ti.template(), own, one, lane, rows: ti.template()):
        """The last layer: parts of each output's sum by as many threads, and then the sum of these."""
        threads, places, inputs = ti.static(self.threads, self.places(rows), self.widths[0])
        outputs, parts = ti.static(self.widths[-1], self.parts(rows))
        source, partial = ti.static(places[-2], places[-1])
        weights = own + ti.static(self.weights[-1])
        width = ti.static(self.widths[-2])
        for turn in range(ti.static(-(-rows * outputs * parts // threads))):
            number = lane + turn * threads
            if number < rows * outputs * parts:
                part, output, r = number % parts, number // parts % outputs, number // (parts * outputs)
                total = ti.cast(0, float)
                for term in range(ti.static(-(-width // parts))):
                    k = term * parts + part
                    if k < width:
                        total += shared[source + r * width + k] * theta[weights + k * outputs + output]
                shared[partial + number] = total
        ti.simt.block.sync()
        for turn in range(ti.static(-(-rows * outputs // threads))):
            number = lane + turn * threads
            if number < rows * outputs:
                total = one * theta[weights + width * outputs + number % outputs]
                for part in range(parts):
                    total += shared[partial + number * parts + part]
                shared[rows * inputs + number] = total


@dataclass(frozen=True)
class InKernel:
    """What a trace hands to a kernel.

    Attributes:
        act: acts on samples, a `DenseInKernel` or what does the same for other networks; what it holds is compiled in.
        theta: [P, n or more], rows that begin with a member's parameters; memory: one row of numbers for all buffers of
            the trace.
        rows: samples of a member that are taken together.
    """

    act: Any
    theta: torch.Tensor
    memory: torch.Tensor
    rows: int


def pays_on_cpu(weights: int, rows: int) -> bool:
    """Whether the CPU is faster so than by torch's products, which gain as there is more to multiply.

    Args:
        weights: parameters of a member; rows: its samples.
    """
    return weights <= _CPU_WEIGHTS or rows * weights <= _CPU_WORK


def rows_on_cpu(rows: int) -> int:
    """How many of a member's `rows` the CPU takes together: so many that as few as can be are computed twice."""
    return -(-rows // -(-rows // ROWS))


def for_blocks(
    widths: tuple[int, ...], strides: tuple[int, ...], rows: int, members: int, size: int
) -> tuple[DenseInKernel, int]:
    """The same for blocks, one row each where that makes few, else as many as fit, so that weights are read less."""
    widest = max(widths[1:-1], default=1)
    act = DenseInKernel(widths, strides, 1, max(_LEAST_THREADS, 2 ** (widest - 1).bit_length()))
    counts = (8, 4, 2) if rows * members > _ENOUGH_BLOCKS else ()
    holding = (count for count in counts if act.shared(count) * size <= _SHARED_BYTES)
    return act, min(rows, next(holding, 1))


def fits_blocks(widths: tuple[int, ...], size: int) -> bool:
    """Whether a block of threads can compute these layers."""
    if max(widths[1:-1], default=1) > MOST_UNITS:
        return False
    act, rows = for_blocks(widths, (), 1, 1, size)
    return act.shared(rows) * size <= _SHARED_BYTES

"""Convolutional networks that act inside a kernel of the CPU, see `policies/in_kernel.py`."""

from dataclasses import dataclass
from itertools import accumulate

import taichi as ti

from policies.in_kernel import ROWS, countable
from policies.tanh import tanh


@dataclass(frozen=True)
class ConvolutionsInKernel:
    """tanh of convolutions over a grid, then a dense layer, on samples of one member; what a kernel is compiled for.

    The places of a layer share every weight that is loaded, and of the dense layer the samples do. Windows of the state
    and activations stay in `memory`, in one row for each sample from row `kept` on; windows of activations lie there
    one in another, and end before the next place begins only where the stride is larger.

    Attributes:
        channels, places: of the state and after each convolution.
        width, stride: of every convolution.
        outputs: of the dense layer.
        window: numbers from one window of the state to the next, of which the last that a window has is a 1.
        sizes: of a sample's row in the buffers that follow each other in `memory`: windows, and activations by layer.
        lanes: units that are computed side by side.
    """

    channels: tuple[int, ...]
    places: tuple[int, ...]
    width: int
    stride: int
    outputs: int
    window: int
    sizes: tuple[int, ...]
    lanes: int
    threads: int = 1

    @property
    def inputs(self) -> tuple[int, ...]:
        """Of a window of each convolution, and of the dense layer."""
        return (*(self.width * count for count in self.channels[:-1]), self.places[-1] * self.channels[-1])

    @property
    def weights(self) -> tuple[int, ...]:
        """Where in a member's parameters those of each layer begin."""
        units = (*self.channels[1:], self.outputs)
        counts = [(inputs + 1) * out for inputs, out in zip(self.inputs, units, strict=True)]
        return tuple(accumulate(counts[:-1], initial=0))

    def apart(self, layer: int) -> int:
        """Numbers from one window of a convolution to the next."""
        return self.window if layer == 0 else self.stride * self.channels[layer]

    @ti.func
    def _at(self, memory: ti.template(), buffer: ti.template(), kept):
        """Where a sample's row of a buffer begins."""
        every, before = ti.static(sum(self.sizes), sum(self.sizes[:buffer]))
        return memory.shape[0] // every * before + kept * ti.static(self.sizes[buffer])

    @ti.func
    def on_rows(
        self, read: ti.template(), write: ti.template(), states: ti.template(), controls: ti.template(),
        theta: ti.template(), memory: ti.template(), t, own, b, kept, skipped, rows: ti.template(),
    ):  # fmt: skip
        """Act on `rows` samples, of the first few of which, `skipped`, nothing is written.

        `read(states, t, b, i)` is number i of a state, `write(controls, t, b, i, u)` sets number i of a control.
        """
        for r in range(skipped, rows):
            self._windows(read, states, memory, t, b + r, kept + r)
            for layer in ti.static(range(len(self.channels) - 1)):
                self._convolve(theta, memory, layer, own, kept + r)
        self._outputs(write, controls, theta, memory, t, own, b, kept, skipped, rows)

    @ti.func
    def _windows(self, read: ti.template(), states: ti.template(), memory: ti.template(), t, b, kept):
        """Gather the first convolution's windows of one sample."""
        channels, points = ti.static(self.channels[0], self.places[0])
        first = self._at(memory, 0, kept)
        for channel in ti.static(range(channels)):
            for place in range(ti.static(self.places[1])):
                for k in ti.static(range(self.width)):
                    value = read(states, t, b, channel * points + place * self.stride + k)
                    memory[first + place * self.window + k * channels + channel] = value

    @ti.func
    def _convolve(self, theta: ti.template(), memory: ti.template(), layer: ti.template(), own, kept):
        """tanh of a convolution of one sample, a few places by a few units at a time.

        The last of these begin where they end with the layer, and repeat some of those before.
        """
        inputs, units, places = ti.static(self.inputs[layer], self.channels[layer + 1], self.places[layer + 1])
        side, lanes, apart = ti.static(min(ROWS, places), min(self.lanes, units), self.apart(layer))
        weights = own + ti.static(self.weights[layer])
        source, target = self._at(memory, layer, kept), self._at(memory, ti.static(layer + 1), kept)
        for some in range(ti.static(-(-places // side))):
            place = ti.min(some * side, ti.static(places - side))
            window = countable(source + place * apart, ti.static((side - 1) * apart + inputs))
            for block in range(ti.static(-(-units // lanes))):
                unit = ti.min(block * lanes, ti.static(units - lanes))
                column = countable(weights + unit, ti.static(inputs * units + lanes))
                sums = [ti.Vector.zero(float, lanes) for _ in ti.static(range(side))]
                for k in range(inputs):
                    inward = [memory[window + r * apart + k] for r in ti.static(range(side))]
                    for lane in range(lanes):
                        weight = theta[column + k * units + lane]
                        for r in ti.static(range(side)):
                            sums[r][lane] += inward[r] * weight
                for lane in range(lanes):
                    bias = theta[column + inputs * units + lane]
                    for r in ti.static(range(side)):
                        sums[r][lane] = tanh(sums[r][lane] + bias)
                for r in ti.static(range(side)):
                    to = countable(target + (place + r) * units + unit, lanes)
                    for lane in range(lanes):
                        memory[to + lane] = sums[r][lane]

    @ti.func
    def _outputs(
        self, write: ti.template(), controls: ti.template(), theta: ti.template(), memory: ti.template(),
        t, own, b, kept, skipped, rows: ti.template(),
    ):  # fmt: skip
        """The dense layer on all samples."""
        layer, inputs, units = ti.static(len(self.channels) - 1, self.inputs[-1], self.outputs)
        lanes, apart = ti.static(min(self.lanes, units), self.sizes[-1])
        weights = own + ti.static(self.weights[-1])
        source = countable(self._at(memory, layer, kept), ti.static((rows - 1) * apart + inputs))
        for block in range(ti.static(-(-units // lanes))):
            unit = ti.min(block * lanes, ti.static(units - lanes))
            column = countable(weights + unit, ti.static(inputs * units + lanes))
            sums = [ti.Vector.zero(float, lanes) for _ in ti.static(range(rows))]
            for k in range(inputs):
                inward = [memory[source + r * apart + k] for r in ti.static(range(rows))]
                for lane in range(lanes):
                    weight = theta[column + k * units + lane]
                    for r in ti.static(range(rows)):
                        sums[r][lane] += inward[r] * weight
            # What is skipped goes where what is right is written after it.
            for r in ti.static(range(rows)):
                for lane in range(lanes):
                    bias = theta[column + inputs * units + lane]
                    write(controls, t, b + ti.max(r, skipped), unit + lane, sums[r][lane] + bias)

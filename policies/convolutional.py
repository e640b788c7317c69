"""Convolutional networks over a one-dimensional grid."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from policies.checks import check_draw, is_size, shape, sizes
from policies.convolutional_trace import ConvolutionalTrace
from policies.in_kernel import pays_on_cpu
from policies.network import Layers
from policies.policy import Policy, PolicyError
from policies.slots import padded_width


class Convolutional(Policy):
    """1-D convolutions with tanh over the grid of a state [channels, points], then a dense layer to the controls.

    Without padding: a layer maps L places to (L - width) // stride + 1. Zero biases and Glorot-uniform weights: of each
    layer uniform within ±√(6 / (fan_in + fan_out)), where a convolution's fans are the places of its window times the
    channels before it and times the filters after it. A state is one image of channels · points places, so that the
    first window has channels · width of them and one channel before it: for 2 channels, width 3 and 60 filters the
    fans are 6 and 360, as in the paper's scripts; a later window has `width` places. A dense layer's are its inputs and
    outputs.

    Args:
        state_shape: (channels, points); control_shape: flattened.
        filters: channels of each convolution.
        width, stride: of every convolution.
        zero_last: start the dense layer at zero, so that the first controls are 0.
        members, dtype, device: as in `Policy`.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        filters: Sequence[int] = (60, 60),
        width: int = 3,
        stride: int = 2,
        zero_last: bool = False,
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        state_shape, control_shape = shape("state shape", state_shape), shape("control shape", control_shape)
        if len(state_shape) != 2:
            raise PolicyError(f"Expected states [channels, points] for convolutions, got shape {list(state_shape)}.")
        filters = sizes("filters of at least 1", filters)
        if not filters or not all(map(is_size, (width, stride))):
            raise PolicyError(
                f"Expected filters, width and stride of at least 1, got {list(filters)}, {width} and {stride}."
            )
        width, stride = int(width), int(stride)
        self.width, self.stride = width, stride
        self.channels = (state_shape[0], *filters)
        places = [state_shape[1]]
        for _ in filters:
            if places[-1] < width:
                raise PolicyError(
                    f"Expected at least {width} places before every convolution, got {places[-1]} after "
                    f"{len(places) - 1} of {len(filters)} from {state_shape[1]} points."
                )
            places.append((places[-1] - width) // stride + 1)
        self.places = tuple(places)
        pairs = [(width * into, out) for into, out in zip(self.channels[:-1], self.channels[1:], strict=True)]
        self.pairs = (*pairs, (places[-1] * filters[-1], math.prod(control_shape)))
        self._layers = Layers(self.pairs)
        super().__init__(state_shape, control_shape, self._layers.stop, members, dtype, device)
        self.zero_last = zero_last

    @property
    def architecture(self) -> dict[str, Any]:
        sizes = {"filters": list(self.channels[1:]), "width": self.width, "stride": self.stride}
        return {**super().architecture, **sizes, "zero_last": self.zero_last}

    def padded(self, rows: int) -> tuple[int, ...]:
        """Places of a trace's buffers after each convolution: no fewer than `places`, each `stride` times the next.

        So many that slots of this many rows begin at multiples of ALIGNMENT.
        """
        scales = [self.stride**above for above in reversed(range(len(self.places) - 1))]
        size, least = self.theta.element_size(), -(-self.places[1] // scales[0])
        elements = [rows * scale * filters for scale, filters in zip(scales, self.channels[1:], strict=True)]
        last = max(padded_width(count, least, size) for count in elements)
        return tuple(last * scale for scale in scales)

    def layers(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of flat rows [P, n], layer by layer: [P, in + 1, out], the last row being the biases.

        A convolution's inputs are ordered (place in the window, channel), the dense layer's (place, channel).
        """
        return self._layers.of(flat)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        *convolutions, last = self.layers(self.theta)
        signal = state.transpose(2, 3)
        for layer in convolutions:
            patches = signal.unfold(2, self.width, self.stride).transpose(3, 4).flatten(3)
            rows = torch.baddbmm(layer[:, -1:], patches.flatten(1, 2), layer[:, :-1])
            signal = torch.tanh(rows).unflatten(1, patches.shape[1:3])
        return torch.baddbmm(last[:, -1:], signal.flatten(2), last[:, :-1]).unflatten(2, self.control_shape)

    def initialise(self, member: int, generator: torch.Generator) -> None:
        check_draw(member, self.members, generator)
        # Of the first convolution the inputs are the places of its window; of later ones, places and channels.
        first, *later = self.pairs[:-1]
        fans = [first[0] * (1 + first[1]), *(inputs + self.width * outputs for inputs, outputs in later)]
        self._layers.initialise(
            self.theta[member : member + 1], generator, self.zero_last, [*fans, sum(self.pairs[-1])]
        )

    def trace(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> ConvolutionalTrace:
        self.check_fit(state_shape, control_shape)
        return ConvolutionalTrace(self, slots, batch)

    def trace_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        windows, *activations = self.trace_sizes(batch // self.members)
        kept = 2 if self.pairs[-1][1] == 1 else 1  # for a single control the gradients of activations
        return batch * (windows + kept * sum(activations)) * self.theta.element_size()

    def launch_bytes(self) -> int:
        """Bytes of what `prepare_act` makes for one slot, where it is asked to."""
        return 2500 * len(self.pairs)

    def acts_in_kernel(self, batch: int, in_blocks: bool) -> bool:
        """Whether traces of `batch` samples have an `in_kernel`, which blocks of threads do not."""
        if type(self).trace is not Convolutional.trace or in_blocks:
            return False
        return pays_on_cpu(self.parameter_count, batch // self.members)

    def scratch_bytes(self, rows: int) -> int:
        # For each activation its gradient, what reaches it, and that gradient weighted by μ (or, for several members,
        # the activation before it is stored); windows of the state likewise; the state's gradient; cotangents.
        windows = self.padded(1)[0] * (self.pairs[0][0] + 1)
        ends = 2 * math.prod(self.state_shape) + 2 * self.pairs[-1][1]
        return rows * (3 * sum(self.trace_sizes(1)[1:]) + 2 * windows + ends) * self.theta.element_size()

    def trace_sizes(self, rows: int) -> tuple[int, ...]:
        """Numbers of one sample in a trace's buffers of this many rows: windows of the state with their ones, and
        activations after each convolution.
        """
        padded, size = self.padded(rows), self.theta.element_size()
        windows = padded[0] * padded_width(rows * padded[0], self.pairs[0][0] + 1, size)
        return (windows, *(places * filters for places, filters in zip(padded, self.channels[1:], strict=True)))

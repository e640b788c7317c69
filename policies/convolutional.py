"""Convolutional networks over a one-dimensional grid, and their hand-written derivatives along a rollout."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from policies.checks import is_size, shape, sizes
from policies.network import Layers
from policies.policy import Policy, PolicyError
from policies.slots import aligned, aligned_slots, is_aligned, padded_width
from policies.trace import LayeredTrace


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
        # Of the first convolution the inputs are the places of its window; of later ones, places and channels.
        first, *later = self.pairs[:-1]
        fans = [first[0] * (1 + first[1]), *(inputs + self.width * outputs for inputs, outputs in later)]
        self._layers.initialise(
            self.theta[member : member + 1], generator, self.zero_last, [*fans, sum(self.pairs[-1])]
        )

    def trace(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> "ConvolutionalTrace":
        self.check_fit(state_shape, control_shape)
        return ConvolutionalTrace(self, slots, batch)

    def trace_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        # Windows of the state with their ones; activations; for a single control the gradients of these.
        kept = 2 if self.pairs[-1][1] == 1 else 1
        rows, size = batch // self.members, self.theta.element_size()
        places = self.padded(rows)[0]
        windows = places * padded_width(rows * places, self.pairs[0][0] + 1, size)
        return batch * (windows + kept * sum(self._activations(rows))) * size + 2500 * len(self.pairs)  # views

    def scratch_bytes(self, rows: int) -> int:
        # For each activation its gradient, what reaches it, and that gradient weighted by μ (or, for several members,
        # the activation before it is stored); windows of the state likewise; the state's gradient; cotangents.
        windows = self.padded(1)[0] * (self.pairs[0][0] + 1)
        ends = 2 * math.prod(self.state_shape) + 2 * self.pairs[-1][1]
        return rows * (3 * sum(self._activations(1)) + 2 * windows + ends) * self.theta.element_size()

    def _activations(self, rows: int) -> list[int]:
        """Elements of one sample's activations after each convolution, as buffers of this many rows hold them."""
        return [places * filters for places, filters in zip(self.padded(rows), self.channels[1:], strict=True)]


class ConvolutionalTrace(LayeredTrace):
    """Activations h_l of a rollout and, for a single control u, its gradients G_l at their sums.

    Buffers are member-major, [P, slots, b, places, channels]. The first convolution is one product of the state's
    windows, ones appended for the biases, with its weights. A later one gathers no windows: with H the activations
    below, `stride` places side by side in a row, and W_k the weights of the window's places from k·stride on,

        sums = Σ_k H[k:] W_k + b,   dH[k:] = Σ_k d(sums) W_kᵀ,   dW_k = H[k:]ᵀ d(sums)

    over all rows of all samples at once. Sums beyond a sample's last whole window mix it with the next sample. Buffers
    of gradients start at zero, and there, as between windows with gaps, they are never written.
    """

    def __init__(self, policy: Convolutional, slots: int, batch: int):
        super().__init__(policy, batch)
        self.policy = policy
        self.controls = policy.pairs[-1][1]
        make = self.layers[0].new_zeros
        shape = (self.members, slots, self.rows)
        padded = policy.padded(self.rows)
        windows = aligned_slots(self.layers[0], self.members, slots, self.rows * padded[0], policy.pairs[0][0] + 1)
        self.windows = windows.unflatten(2, (self.rows, padded[0]))
        self.windows[..., -1] = 1.0
        self.hidden = [
            make(*shape, places, filters) for places, filters in zip(padded, policy.channels[1:], strict=True)
        ]
        self.slopes = [torch.zeros_like(hidden) for hidden in self.hidden] if self.controls == 1 else []

    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Callable[[], None]:
        """Windows of the state, then products and tanh into this slot's buffers, all `out=`."""
        policy, windows = self.policy, self.windows[:, slot]
        given = state.detach().view(self.members, self.rows, *policy.state_shape)
        inside = windows[:, :, : policy.places[1], :-1].unflatten(3, (policy.width, -1))
        unfolded = given.unfold(3, policy.width, policy.stride).permute(0, 1, 3, 4, 2)
        calls: list[Callable] = [partial(inside.copy_, unfolded)]
        source = windows
        for index, (kept, layer) in enumerate(zip(self.hidden, self.layers, strict=False)):
            hidden = kept[:, slot]
            target = self._buffer(f"act {index}", tuple(hidden.shape)) if self.apart else hidden
            sums, bias = target.flatten(1, 2), layer[:, -1:]
            if index == 0:
                calls.append(_product(source.flatten(1, 2), layer, sums))
            else:
                (_, rows, weights), *others = self._terms(source, layer[:, :-1])
                calls.append(_product(rows, weights, sums, bias))
                calls += [_product(rows, weights, sums[:, :-shift], add=True) for shift, rows, weights in others]
            calls.append(target.tanh_)
            if self.apart:
                calls.append(partial(hidden.copy_, target))
            source = target
        outputs, last = control.view(self.members, self.rows, -1), self.layers[-1]
        out = outputs if is_aligned(outputs) else self._buffer("control", tuple(outputs.shape))
        calls += [_product(self._dense_inputs(source), last[:, :-1], out), partial(out.add_, last[:, -1:])]
        if out is not outputs:
            calls.append(partial(outputs.copy_, out))

        def act() -> None:
            for call in calls:
                call()

        return act

    def linearise(
        self, first: int, last: int, states: torch.Tensor, samples: slice, jacobian: torch.Tensor | None
    ) -> None:
        members = self._members(samples)
        self._held = members if self.slopes else None
        if jacobian is None and not self.slopes:
            return
        steps = last - first
        for c in range(self.controls):
            weights = self.layers[-1][members, :-1, c].unsqueeze(1)
            deltas = self._deltas(first, last, weights, members, self.slopes)
            if jacobian is not None:
                gradient = self._to_state(deltas[0], members)
                rows = jacobian.view(steps, self.members, self.rows, *jacobian.shape[2:])[:, members, :, c]
                rows.copy_(gradient.unflatten(1, (steps, self.rows)).transpose(0, 1).flatten(3))

    def pull_back_state(self, slot: int, state: torch.Tensor, cotangent: torch.Tensor, samples: slice) -> torch.Tensor:
        members = self._members(samples)
        output = aligned(cotangent).reshape(members.stop - members.start, self.rows, -1)
        above = torch.bmm(output, self.layers[-1][members, :-1].transpose(1, 2))
        deltas = self._deltas(slot, slot + 1, above, members)
        return self._to_state(deltas[0], members).reshape(state.shape)

    def pull_back_parameters(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradient: torch.Tensor,
    ) -> None:
        members = self._members(samples)
        output = self._member_major(cotangents, members)
        windows = self._slots(self.windows, first, last, members)
        if self._keeps(members):
            slopes = [self._slots(slope, first, last, members) for slope in self.slopes]
            # In the first layer μ weights the windows, which are fewer than G_1.
            windows, *others = [
                torch.mul(values, output.unsqueeze(3), out=self._buffer(f"weighted {i}", tuple(values.shape)))
                for i, values in enumerate([windows, *slopes[1:]])
            ]
            deltas = [slopes[0], *others]
        else:
            above = torch.bmm(output, self.layers[-1][members, :-1].transpose(1, 2))
            deltas = self._deltas(first, last, above, members)
        first_layer, *layers, dense = self.policy.layers(gradient[members])
        _product(windows.flatten(1, 2).transpose(1, 2), deltas[0].flatten(1, 2), first_layer, add=True)()
        for layer, hidden, delta in zip(layers, self.hidden, deltas[1:], strict=False):
            sums = delta.flatten(1, 2)
            layer[:, -1] += sums.sum(1)
            for shift, rows, part in self._terms(self._slots(hidden, first, last, members), layer[:, :-1]):
                _product(rows.transpose(1, 2), sums[:, : sums.shape[1] - shift], part, add=True)()
        inputs = self._dense_inputs(self._slots(self.hidden[-1], first, last, members))
        dense[:, -1] += output.sum(1)
        _product(inputs.transpose(1, 2), output, dense[:, :-1], add=True)()

    def _deltas(
        self, first: int, last: int, above: torch.Tensor, members: slice, kept: Sequence[torch.Tensor] = ()
    ) -> list[torch.Tensor]:
        """Gradients [P, rows, places, filters] at every convolution's sums, in the buffers `kept` if given.

        `above` [P, rows or 1, places·filters] is the gradient at the dense layer's inputs.
        """
        deltas: list[torch.Tensor] = []
        above = above.unflatten(2, (self.policy.places[-1], -1))
        for index in reversed(range(len(self.hidden))):
            hidden, places = self._slots(self.hidden[index], first, last, members), self.policy.places[index + 1]
            if kept:
                delta = self._slots(kept[index], first, last, members)
            else:
                delta = self._buffer(f"delta {index}", tuple(hidden.shape))
            valid = hidden[:, :, :places]
            _slope_of_tanh(above[:, :, :places].expand_as(valid), valid, grad_input=delta[:, :, :places])
            deltas.insert(0, delta)
            if index > 0:
                below = (*hidden.shape[:2], *self.hidden[index - 1].shape[3:])
                above, sums = self._buffer(f"above {index}", below), delta.flatten(1, 2)
                for shift, rows, weights in self._terms(above, self.layers[index][members, :-1]):
                    part = sums[:, : sums.shape[1] - shift]
                    _product(part, weights.transpose(1, 2), rows, add=shift > 0)()
        return deltas

    def _to_state(self, delta: torch.Tensor, members: slice) -> torch.Tensor:
        """The gradient [P, rows, channels, points] of the state, from that of the first sums."""
        policy = self.policy
        weights = self.layers[0][members, :-1].transpose(1, 2)
        windows = self._buffer("state windows", (*delta.shape[:3], weights.shape[2]))
        _product(delta.flatten(1, 2), weights, windows.flatten(1, 2))()
        inside = windows[:, :, : policy.places[1]].unflatten(3, (policy.width, -1))
        result = self._buffer("state", (*delta.shape[:2], *policy.state_shape)).zero_()
        for place in range(policy.width):
            stop = place + policy.stride * (policy.places[1] - 1) + 1
            result[:, :, :, place : stop : policy.stride] += inside[:, :, :, place].transpose(2, 3)
        return result

    def _terms(self, signal: torch.Tensor, weights: torch.Tensor) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """(k, H[k:], W_k) of a later convolution over `signal` [P, ..., places, channels]; views."""
        channels, width, stride = signal.shape[-1], self.policy.width, self.policy.stride
        rows = signal.reshape(len(signal), -1, stride * channels)
        terms = []
        for shift, place in enumerate(range(0, width, stride)):
            count = channels * min(stride, width - place)
            terms.append((shift, rows[:, shift:, :count], weights[:, place * channels : place * channels + count]))
        return terms

    def _dense_inputs(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.flatten(2)[:, :, : self.policy.pairs[-1][0]]


_slope_of_tanh = torch.ops.aten.tanh_backward.grad_input
"""(gradient, tanh(z), *, grad_input=out): gradient · (1 - tanh²(z)) in one pass."""


def _product(
    left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None = None, add: bool = False
) -> Callable[[], torch.Tensor]:
    """A call that writes left @ right (+ bias [P, 1, width]) to `out`, or adds to it; all [P, ...]."""
    single = len(out) == 1
    if single:
        left, right, out = left[0], right[0], out[0]
    if add:
        return partial(out.addmm_ if single else out.baddbmm_, left, right)
    if bias is None:
        return partial(torch.mm if single else torch.bmm, left, right, out=out)
    return partial(torch.addmm if single else torch.baddbmm, bias[0] if single else bias, left, right, out=out)

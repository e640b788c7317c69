"""Convolutional networks over a one-dimensional grid, and their hand-written derivatives along a rollout."""

import math
from collections.abc import Callable, Sequence

import torch

from policies.policy import Policy, PolicyError, PolicyRecord


class Convolutional(Policy):
    """1-D convolutions with tanh over the grid of a state [channels, points], then a dense layer to the controls.

    Without padding: a layer maps L places to (L - width) // stride + 1. Glorot-uniform weights, zero biases.

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
        if len(state_shape) != 2:
            raise PolicyError(f"Expected states [channels, points] for convolutions, got shape {list(state_shape)}.")
        if not filters or min(*filters, width, stride) < 1:
            raise PolicyError(
                f"Expected filters, width and stride of at least 1, got {list(filters)}, {width} and {stride}."
            )
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
        self._pairs = [*pairs, (places[-1] * filters[-1], math.prod(control_shape))]
        count = sum((inputs + 1) * outputs for inputs, outputs in self._pairs)
        super().__init__(state_shape, control_shape, count, members, dtype, device)
        self.zero_last = zero_last

    def layers(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of flat rows [P, n], layer by layer: [P, in + 1, out], the last row being the biases.

        A convolution's inputs are ordered (place in the window, channel), the dense layer's (place, channel).
        """
        views, offset = [], 0
        for inputs, outputs in self._pairs:
            stop = offset + (inputs + 1) * outputs
            views.append(flat[:, offset:stop].unflatten(1, (inputs + 1, outputs)))
            offset = stop
        return views

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        *convolutions, last = self.layers(self.theta)
        signal = state.transpose(2, 3)
        for layer in convolutions:
            patches = signal.unfold(2, self.width, self.stride).transpose(3, 4).flatten(3)
            rows = torch.baddbmm(layer[:, -1:], patches.flatten(1, 2), layer[:, :-1])
            signal = torch.tanh(rows).unflatten(1, patches.shape[1:3])
        return torch.baddbmm(last[:, -1:], signal.flatten(2), last[:, :-1]).unflatten(2, self.control_shape)

    @torch.no_grad()
    def initialise(self, member: int, generator: torch.Generator) -> None:
        row = self.theta[member : member + 1]
        row.zero_()
        layers = self.layers(row)
        for index, layer in enumerate(layers):
            inputs, outputs = layer.shape[1] - 1, layer.shape[2]
            last = index == len(layers) - 1
            # Glorot's fans count every place of the window on both sides.
            fans = inputs + outputs * (1 if last else self.width)
            draw = torch.rand(inputs, outputs, generator=generator, dtype=torch.float64)
            if not (last and self.zero_last):
                layer[0, :-1].copy_((2.0 * draw - 1.0) * math.sqrt(6.0 / fans))

    def record(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> "ConvolutionalRecord":
        self.check_fit(state_shape, control_shape)
        return ConvolutionalRecord(self, slots, batch)

    def record_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        # Patches and the dense layer's inputs, with their ones; activations; for a single control its slopes.
        outputs = [places * filters for places, filters in zip(self.places[1:], self.channels[1:], strict=True)]
        patches = [p * (inputs + 1) for p, (inputs, _) in zip((*self.places[1:], 1), self._pairs, strict=True)]
        kept = 2 if math.prod(control_shape) == 1 else 1
        return batch * (sum(patches) + kept * sum(outputs)) * self.theta.element_size()

    def scratch_bytes(self, rows: int) -> int:
        # Gradients of patches and of activations, and weighted slopes, of every layer.
        outputs = [places * filters for places, filters in zip(self.places[1:], self.channels[1:], strict=True)]
        patches = [p * inputs for p, (inputs, _) in zip(self.places[1:], self._pairs[:-1], strict=True)]
        ends = 3 * (math.prod(self.state_shape) + self._pairs[-1][1])
        return rows * (sum(patches) + 3 * sum(outputs) + ends) * self.theta.element_size()


class ConvolutionalRecord(PolicyRecord):
    """Patches and activations of a rollout, member-major: [P, slots, b, places, ...].

    A convolution is one product of patches [rows·places, width·channels + 1], ones appended for the biases, with its
    weights. Backwards, its product's transpose gives the gradient of the patches, which are then added up over the
    windows that overlap. For a single control the gradients of u at every layer are kept and only scaled by μ.
    """

    def __init__(self, policy: Convolutional, slots: int, batch: int):
        self.policy, self.members, self.rows = policy, policy.members, batch // policy.members
        self.layers = policy.layers(policy.theta.detach())
        self.controls = policy._pairs[-1][1]
        make = policy.theta.detach().new_zeros
        shape = (self.members, slots, self.rows)
        places, channels = policy.places[1:], policy.channels[1:]
        self.patches = [
            make(*shape, place, inputs + 1) for place, (inputs, _) in zip((*places, 1), policy._pairs, strict=True)
        ]
        for buffer in self.patches:
            buffer[..., -1] = 1.0
        self.hidden = [make(*shape, place, channel) for place, channel in zip(places, channels, strict=True)]
        single = self.controls == 1
        self.slopes = [torch.zeros_like(buffer) for buffer in self.hidden] if single else []
        self._held: slice | None = None
        self._one = make(1).add_(1.0)
        self._scratch: dict[str, torch.Tensor] = {}

    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Callable[[], None]:
        single = self.members == 1
        product = torch.mm if single else torch.bmm
        strip = (lambda tensor: tensor[0]) if single else (lambda tensor: tensor)
        inputs = state.detach().view(self.members, self.rows, *self.policy.state_shape).transpose(2, 3)
        out = strip(control.view(self.members, self.rows, -1))
        steps: list[tuple[torch.Tensor, ...]] = []
        for index, hidden in enumerate(self.hidden):
            patches = self.patches[index][:, slot]
            windows = self._windows(inputs)
            target = self._buffer(f"act {index}", (self.members, math.prod(hidden.shape[2:4]), hidden.shape[4]))
            steps.append(
                (
                    patches[..., :-1].unflatten(3, windows.shape[3:]),
                    windows,
                    strip(patches.flatten(1, 2)),
                    strip(self.layers[index]),
                    strip(target),
                    hidden[:, slot],
                    target.view(hidden[:, slot].shape),
                )
            )
            inputs = hidden[:, slot]
        dense = self.patches[-1][:, slot, :, 0]
        dense_inputs, last_source, last_layer = dense[..., :-1], strip(dense), strip(self.layers[-1])
        flat = inputs.flatten(2)

        def act() -> None:
            for slots, windows, patches, layer, target, activation, shaped in steps:
                slots.copy_(windows)
                product(patches, layer, out=target)
                target.tanh_()
                activation.copy_(shaped)
            dense_inputs.copy_(flat)
            product(last_source, last_layer, out=out)

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
            output = states.new_zeros(members.stop - members.start, steps * self.rows, self.controls)
            output[..., c] = 1.0
            deltas = self._deltas(first, last, output, members)
            if self.slopes:
                for buffer, delta in zip(self.slopes, deltas, strict=False):
                    buffer[members, first:last].flatten(1, 2).copy_(delta)
            if jacobian is not None:
                gradient = self._to_state(deltas[0], members)
                rows = jacobian.view(steps, self.members, self.rows, *jacobian.shape[2:])[:, members, :, c]
                rows.copy_(gradient.unflatten(1, (steps, self.rows)).transpose(0, 1).flatten(3))

    def pull_back_state(self, slot: int, state: torch.Tensor, cotangent: torch.Tensor, samples: slice) -> torch.Tensor:
        members = self._members(samples)
        output = cotangent.reshape(members.stop - members.start, self.rows, -1)
        deltas = self._deltas(slot, slot + 1, output, members)
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
        output = cotangents.reshape(last - first, self.members, self.rows, -1)[:, members].transpose(0, 1).flatten(1, 2)
        held = self._held
        if held is not None and held.start <= members.start and members.stop <= held.stop:
            deltas = [
                torch.mul(
                    slope[members, first:last].flatten(1, 2),
                    output.unsqueeze(3),
                    out=self._like(f"delta {i}", slope, output),
                )
                for i, slope in enumerate(self.slopes)
            ]
            deltas.append(output.unsqueeze(2))
        else:
            deltas = self._deltas(first, last, output, members)
        for layer, patches, delta in zip(self.policy.layers(gradient[members]), self.patches, deltas, strict=True):
            rows = patches[members, first:last].flatten(1, 3)
            layer += torch.bmm(rows.transpose(1, 2), delta.flatten(1, 2))

    def _deltas(self, first: int, last: int, output: torch.Tensor, members: slice) -> list[torch.Tensor]:
        """Gradients [P, rows, places, channels] at every layer's sum for cotangents `output` [P, rows, m]."""
        deltas = [output.unsqueeze(2)]
        last_weights = self.layers[-1][members, :-1].transpose(1, 2)
        above = torch.bmm(output, last_weights).unflatten(2, self.hidden[-1].shape[3:])
        for index in reversed(range(len(self.hidden))):
            hidden = self.hidden[index][members, first:last].flatten(1, 2)
            delta = torch.addcmul(self._one, hidden, hidden, value=-1.0).mul_(above)
            deltas.insert(0, delta)
            if index > 0:
                above = self._gather(delta, self.layers[index][members, :-1], self.hidden[index - 1].shape[3:])
        return deltas

    def _to_state(self, delta: torch.Tensor, members: slice) -> torch.Tensor:
        """The gradient [P, rows, channels, points] of the state, from that of the first layer's sum."""
        channels, points = self.policy.state_shape
        return self._gather(delta, self.layers[0][members, :-1], (points, channels)).transpose(2, 3)

    def _gather(self, delta: torch.Tensor, weights: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A convolution's gradient [P, rows, *shape] of its inputs: overlapping windows added up."""
        width, stride, places = self.policy.width, self.policy.stride, delta.shape[2]
        windows = torch.bmm(delta.flatten(1, 2), weights.transpose(1, 2)).unflatten(1, delta.shape[1:3])
        result = delta.new_zeros(*delta.shape[:2], *shape)
        for place in range(width):
            stop = place + stride * (places - 1) + 1
            result[:, :, place:stop:stride] += windows[..., place * shape[1] : (place + 1) * shape[1]]
        return result

    def _windows(self, signal: torch.Tensor) -> torch.Tensor:
        """[P, b, places, width, channels] views of a signal [P, b, places, channels]."""
        return signal.unfold(2, self.policy.width, self.policy.stride).transpose(3, 4)

    def _members(self, samples: slice) -> slice:
        return slice(samples.start // self.rows, samples.stop // self.rows)

    def _like(self, name: str, slope: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return self._buffer(name, (*output.shape[:2], *slope.shape[3:]))

    def _buffer(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        size = math.prod(shape)
        if name not in self._scratch or self._scratch[name].numel() < size:
            self._scratch[name] = self.policy.theta.detach().new_zeros(size)
        return self._scratch[name][:size].view(shape)

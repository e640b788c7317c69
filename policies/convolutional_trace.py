"""What a convolutional network keeps of a rollout, and its hand-written derivatives along it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from policies.convolutions_in_kernel import ConvolutionsInKernel
from policies.in_kernel import LANE_BYTES, InKernel, rows_on_cpu
from policies.slots import aligned, is_aligned, padded_rows
from policies.trace import LayeredTrace

if TYPE_CHECKING:
    from policies.convolutional import Convolutional


class ConvolutionalTrace(LayeredTrace):
    """Activations h_l of a rollout and, for a single control u, its gradients G_l at their sums.

    Buffers are member-major, [P, slots, b, places, channels]. The first convolution is one product of the state's
    windows, ones appended for the biases, with its weights. A later one gathers no windows: with H the activations
    below, `stride` places side by side in a row, and W_k the weights of the window's places from k·stride on,

        sums = Σ_k H[k:] W_k + b,   dH[k:] = Σ_k d(sums) W_kᵀ,   dW_k = H[k:]ᵀ d(sums)

    over all rows of all samples at once. Sums beyond a sample's last whole window mix it with the next sample. Buffers
    of gradients start at zero, and there, as between windows with gaps, they are never written.
    """

    def __init__(self, policy: "Convolutional", slots: int, batch: int):
        super().__init__(policy, batch)
        self.policy = policy
        self.controls = policy.pairs[-1][1]
        shape, padded = (self.members, slots, self.rows), policy.padded(self.rows)
        self.sizes = policy.trace_sizes(self.rows)
        self.memory = self.layers[0].new_zeros(math.prod(shape) * sum(self.sizes))
        windows, *hidden = self.memory.split([math.prod(shape) * size for size in self.sizes])
        self.windows = windows.view(*shape, padded[0], -1)[..., : policy.pairs[0][0] + 1]
        self.windows[..., -1] = 1.0
        self.hidden = [
            part.view(*shape, places, filters)
            for part, places, filters in zip(hidden, padded, policy.channels[1:], strict=True)
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

    def in_kernel(self, in_blocks: bool) -> InKernel:
        """What acts inside a kernel and keeps what `prepare_act` would; asked for where `acts_in_kernel`."""
        assert self.theta is not None
        policy, size = self.policy, self.memory.element_size()
        act = ConvolutionsInKernel(
            policy.channels, policy.places, policy.width, policy.stride, self.controls, self.windows.stride(3),
            self.sizes, LANE_BYTES // size,
        )  # fmt: skip
        return InKernel(act, padded_rows(self.theta), self.memory, rows_on_cpu(self.rows))

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
        deltas = self._deltas(slot, slot + 1, self._above(output, members), members)
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
            deltas = self._deltas(first, last, self._above(output, members), members)
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

    def _above(self, output: torch.Tensor, members: slice) -> torch.Tensor:
        """The gradient [P, rows, places·filters] at the dense layer's inputs, from that of its outputs."""
        weights = self.layers[-1][members, :-1].transpose(1, 2)
        out = self._buffer("above", (*output.shape[:2], weights.shape[2]))
        return torch.mul(output, weights, out=out) if self.controls == 1 else torch.bmm(output, weights, out=out)

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

"""Multi-layer perceptrons with tanh hidden layers, and their hand-written derivatives along a rollout."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from policies.alone import dense
from policies.checks import check_draw, shape, sizes
from policies.in_kernel import LANE_BYTES, DenseInKernel, InKernel, fits_blocks, for_blocks, pays_on_cpu, rows_on_cpu
from policies.network import Network
from policies.policy import Policy
from policies.slots import aligned, aligned_slots, is_aligned, padded_rows, padded_width, together
from policies.trace import LayeredTrace


class MLP(Policy):
    """u = W_L tanh(... tanh(W_1 x + b_1) ...) + b_L; `initialise` draws Glorot-uniform weights and zero biases.

    Until then all of them are 0.

    Args:
        state_shape, control_shape: shapes of one sample; flattened at both ends.
        hidden: widths of the hidden layers.
        zero_last: start the last layer at zero, so that the first controls are 0.
        members, dtype, device: as in `Policy`.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        hidden: Sequence[int] = (100, 100),
        zero_last: bool = False,
        members: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        state_shape, control_shape = shape("state shape", state_shape), shape("control shape", control_shape)
        hidden = sizes("hidden layers of at least 1 unit", hidden)
        self.widths = (math.prod(state_shape), *hidden, math.prod(control_shape))
        self._network = Network(self.widths)
        super().__init__(state_shape, control_shape, self._network.stop, members, dtype, device)
        self.zero_last = zero_last

    @property
    def architecture(self) -> dict[str, Any]:
        return {**super().architecture, "hidden": list(self.widths[1:-1]), "zero_last": self.zero_last}

    def layers(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of flat rows [P, n], layer by layer: [P, in + 1, out], the last row being the biases."""
        return self._network.of(flat)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self._network(self.theta, state.flatten(2)).unflatten(2, self.control_shape)

    def _alone(self, member: int) -> nn.Module:
        layers = self.layers(self.theta[member : member + 1])
        return dense([(layer[0, :-1], layer[0, -1]) for layer in layers], self.control_shape)

    def initialise(self, member: int, generator: torch.Generator) -> None:
        check_draw(member, self.members, generator)
        self._network.initialise(self.theta[member : member + 1], generator, self.zero_last)

    def trace(self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> "MLPTrace":
        self.check_fit(state_shape, control_shape)
        return MLPTrace(self, slots, batch)

    def trace_bytes(self, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]) -> int:
        # Inputs of every layer with their ones, and for each control the gradients of the hidden layers.
        rows, size = batch // self.members, self.theta.element_size()
        inputs = sum(padded_width(rows, width + 1, size) for width in self.widths[:-1])
        kept = self.widths[-1] if self.widths[-1] <= _KEPT_CONTROLS else 0
        numbers = inputs + kept * sum(padded_width(rows, width, size) for width in self.widths[1:-1])
        return batch * numbers * size

    def launch_bytes(self) -> int:
        """Bytes of what `prepare_act` makes for one slot, where it is asked to."""
        return _VIEW_BYTES * (len(self.widths) - 1)

    def acts_in_kernel(self, batch: int, in_blocks: bool) -> bool:
        """Whether traces of `batch` samples have an `in_kernel`: for blocks of threads, or for a CPU if it pays."""
        if type(self).trace is not MLP.trace:
            return False
        if in_blocks:
            return fits_blocks(self.widths, self.theta.element_size())
        return pays_on_cpu(self.parameter_count, batch // self.members)

    def scratch_bytes(self, rows: int) -> int:
        # For each hidden layer δ, what reaches it and, for K, G and what reaches that; activations before they are
        # stored; inputs weighted by μ, K's and the state's gradients; cotangents by member.
        # Gradients that the trace keeps take no second place; of several members blocks are copied together.
        hidden = sum(self.widths[1:-1])
        if self.widths[-1] > _KEPT_CONTROLS:
            numbers = 5 * hidden
        elif self.members > 1:
            numbers = 4 * hidden
        else:
            above = sum(self.widths[1:-2])  # what K's gradients of the layers above reach
            numbers = above + (2 * hidden if self.widths[-1] > 1 else sum(self.widths[2:-1]))
        return rows * (numbers + 3 * self.widths[0] + 1 + 2 * self.widths[-1]) * self.theta.element_size()


# Up to this many controls, ∂u_c/∂(layer) is kept for every c and weighted by μ_c, which saves a matrix product.
_KEPT_CONTROLS = 4
# What a slot's views of one layer take.
_VIEW_BYTES = 2000


class MLPTrace(LayeredTrace):
    """States and activations h_l = tanh(h_{l-1} W_l + b_l) of a rollout, and the gradients of u with respect to them.

    With a column of ones appended to x and h, biases are the last row of each weight matrix. Buffers are member-major,
    [P, slots, b, width]. With G_l = ∂u_c/∂(h_{l-1} W_l + b_l):

        G_L = e_c,   G_l = (G_{l+1} W_{l+1}ᵀ) (1 - h_l²),   K_c = G_1 W_1ᵀ,   ∂L/∂W_l = h_{l-1}ᵀ Σ_c μ_c G_l
    """

    def __init__(self, policy: MLP, slots: int, batch: int):
        super().__init__(policy, batch)
        self.policy = policy
        make = partial(aligned_slots, self.layers[0], self.members, slots, self.rows)
        inputs = [width + 1 for width in policy.widths[:-1]]
        self.memory, self.augmented = together(self.layers[0], self.members, slots, self.rows, inputs)
        for buffer in self.augmented:
            buffer[..., -1] = 1.0
        self.hidden = [buffer[..., :-1] for buffer in self.augmented[1:]]
        self.controls = policy.widths[-1]
        kept = self.controls if self.controls <= _KEPT_CONTROLS else 0
        self.slopes = [[make(width) for width in policy.widths[1:-1]] for _ in range(kept)]
        self._one = self.layers[0].new_ones(1)

    def prepare_act(self, slot: int, state: torch.Tensor, control: torch.Tensor) -> Callable[[], None]:
        """One matrix product and one tanh a layer, into this slot's buffers, all `out=`."""
        single = self.members == 1
        strip = (lambda tensor: tensor[0]) if single else (lambda tensor: tensor)
        inputs = strip(state.detach().view(self.members, self.rows, -1))
        outputs = control.view(self.members, self.rows, -1)
        out = strip(outputs if is_aligned(outputs) else self._buffer("control", tuple(outputs.shape)))
        outputs = strip(outputs)
        moved = not is_aligned(outputs)
        sources = [strip(augmented[:, slot]) for augmented in self.augmented]
        weights = [strip(layer) for layer in self.layers]
        activations = [strip(hidden[:, slot]) for hidden in self.hidden]
        first_source, last_source, last_weights = sources[0][..., :-1], sources[-1], weights[-1]
        if single:
            single_layers = list(zip(sources[:-1], weights[:-1], activations, strict=True))

            def act() -> None:
                first_source.copy_(inputs)
                for source, layer, activation in single_layers:
                    torch.mm(source, layer, out=activation)
                    activation.tanh_()
                torch.mm(last_source, last_weights, out=out)
                if moved:
                    outputs.copy_(out)

            return act

        buffers = [self._buffer("act", tuple(one.shape)) if self.apart else one for one in activations]
        hidden_layers = list(zip(sources[:-1], weights[:-1], buffers, activations, strict=True))

        def act_together() -> None:
            first_source.copy_(inputs)
            for source, layer, buffer, activation in hidden_layers:
                torch.bmm(source, layer, out=buffer)
                buffer.tanh_()
                if buffer is not activation:
                    activation.copy_(buffer)
            torch.bmm(last_source, last_weights, out=out)
            if moved:
                outputs.copy_(out)

        return act_together

    def in_kernel(self, in_blocks: bool) -> InKernel:
        """What acts inside a kernel and keeps what `prepare_act` would; asked for where `acts_in_kernel`."""
        widths, size = self.policy.widths, self.memory.element_size()
        strides = tuple(padded_width(self.rows, width + 1, size) for width in widths[:-1])
        if in_blocks:
            act, rows = for_blocks(widths, strides, self.rows, self.members, size)
        else:
            act, rows = DenseInKernel(widths, strides, LANE_BYTES // size, 1), rows_on_cpu(self.rows)
        assert self.theta is not None
        return InKernel(act, padded_rows(self.theta), self.memory, rows)

    def linearise(
        self, first: int, last: int, states: torch.Tensor, samples: slice, jacobian: torch.Tensor | None
    ) -> None:
        members = self._members(samples)
        self._held = members if self.slopes and (jacobian is not None or self.controls == 1) else None
        if jacobian is None and self._held is None:
            return
        hidden = [self._slots(one, first, last, members) for one in self.hidden]
        slopes = [[self._slots(one, first, last, members) for one in of_control] for of_control in self.slopes]
        if slopes:  # 1 - h² lies where the last control's gradients will
            for one, place in zip(hidden, slopes[-1], strict=True):
                self._slope_of_tanh(one, place)
        for c in range(self.controls):
            gradient = self.layers[-1][members, :-1, c].unsqueeze(1)
            for index in reversed(range(len(hidden))):
                if slopes:
                    slope = torch.mul(slopes[-1][index], gradient, out=slopes[c][index])
                else:
                    slope = self._buffer(f"slope {index}", tuple(hidden[index].shape))
                    self._slope_of_tanh(hidden[index], slope).mul_(gradient)
                if index > 0 or jacobian is not None:
                    weights = self.layers[index][members, :-1].transpose(1, 2)
                    gradient = self._product("gradient", slope, weights, index)
            if jacobian is not None:
                steps = last - first
                rows = jacobian.view(steps, self.members, self.rows, *jacobian.shape[2:])[:, members, :, c]
                full = gradient.expand(-1, steps * self.rows, -1)
                rows.copy_(full.unflatten(1, (steps, self.rows)).transpose(0, 1))

    def pull_back_state(self, slot: int, state: torch.Tensor, cotangent: torch.Tensor, samples: slice) -> torch.Tensor:
        members = self._members(samples)
        output = aligned(cotangent).view(members.stop - members.start, self.rows, -1)
        deltas = self._deltas(slot, slot + 1, output, members)
        pulled = self._product("state", deltas[0], self.layers[0][members, :-1].transpose(1, 2), 0)
        return pulled.reshape(state.shape)

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
        below = [self._slots(buffer, first, last, members) for buffer in self.augmented]
        first_layer, *layers = self.policy.layers(gradient[members])
        if self.hidden and self._keeps(members):
            # Scaling the inputs by μ instead of G_1 is cheaper: there are few of them.
            weighted = self._buffer("weighted", tuple(below[0].shape))
            for c in range(self.controls):
                torch.mul(below[0], output[:, :, c : c + 1], out=weighted)
                self._add_product(first_layer, weighted, self._slots(self.slopes[c][0], first, last, members))
            deltas = self._deltas(first, last, output, members, lowest=1)
        else:
            first_delta, *deltas = self._deltas(first, last, output, members)
            self._add_product(first_layer, below[0], first_delta)
        for layer, rows, delta in zip(layers, below[1:], deltas, strict=True):
            self._add_product(layer, rows, delta)

    def pull_back_samples(
        self,
        first: int,
        last: int,
        states: torch.Tensor,
        cotangents: torch.Tensor,
        samples: slice,
        gradients: torch.Tensor,
    ) -> None:
        """As `pull_back_parameters`, with a product for every sample: ∂L_b/∂W_l = Σ_t h_{l-1}ᵀ δ_l."""
        members = self._members(samples)
        deltas = self._deltas(first, last, self._member_major(cotangents, members), members)
        for layer, buffer, delta in zip(
            self.policy.layers(gradients[members].flatten(0, 1)), self.augmented, deltas, strict=True
        ):
            above = delta.unflatten(1, (last - first, self.rows))
            for own, below, of_member in zip(layer.split(self.rows), buffer[members, first:last], above, strict=True):
                own.baddbmm_(below.permute(1, 2, 0), of_member.transpose(0, 1))

    def _deltas(
        self, first: int, last: int, output: torch.Tensor, members: slice, lowest: int = 0
    ) -> list[torch.Tensor]:
        """Σ_c μ_c G_l of the hidden layers from `lowest` on and of the last, [P, rows, width]; `output` is μ."""
        deltas = [output]
        for index in reversed(range(lowest, len(self.hidden))):
            hidden = self._slots(self.hidden[index], first, last, members)
            delta = self._buffer(f"delta {index}", tuple(hidden.shape))
            if self._keeps(members):
                torch.mul(self._slots(self.slopes[0][index], first, last, members), output[:, :, :1], out=delta)
                for c in range(1, self.controls):
                    delta.addcmul_(self._slots(self.slopes[c][index], first, last, members), output[:, :, c : c + 1])
            else:
                above = self.layers[index + 1][members, :-1].transpose(1, 2)
                product = self._product("above", deltas[0], above, index)
                self._slope_of_tanh(hidden, delta).mul_(product)
            deltas.insert(0, delta)
        return deltas

    def _add_product(self, layer: torch.Tensor, rows: torch.Tensor, delta: torch.Tensor) -> None:
        """layer += rowsᵀ delta, for layer [P, in + 1, out]."""
        if layer.shape[0] == 1:
            layer[0].addmm_(rows[0].t(), delta[0])
        elif not self.apart:
            layer.baddbmm_(rows.transpose(1, 2), delta)
        elif layer.shape[2] < layer.shape[1]:  # a narrow product is faster on its side
            layer += self._product("weights", delta.transpose(1, 2), rows, 0).transpose(1, 2)
        else:
            layer += self._product("weights", rows.transpose(1, 2), delta, 0)

    def _slope_of_tanh(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """1 - h² into `out`."""
        return torch.addcmul(self._one, hidden, hidden, value=-1.0, out=out)

    def _product(self, name: str, left: torch.Tensor, right: torch.Tensor, index: int) -> torch.Tensor:
        """left @ right, member by member, into a buffer of this name."""
        out = self._buffer(f"{name} {index}", (left.shape[0], left.shape[1], right.shape[2]))
        if left.shape[0] == 1:
            torch.mm(left[0], right[0], out=out[0])
        else:
            torch.bmm(left, right, out=out)
        return out

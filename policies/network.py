"""Affine layers with their weights in flat rows, and the dense network that they make."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from policies.checks import sizes


class Layers:
    """Affine layers whose weights and biases follow each other in flat rows [P, n]; no state of its own.

    Args:
        pairs: (inputs, outputs) of each layer.
        offset: where in a row the first begins.

    Attributes:
        start, stop: where in a row they begin and end.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], offset: int = 0):
        self.pairs = tuple(pairs)
        self.start, self.stop = offset, offset + sum((inputs + 1) * outputs for inputs, outputs in self.pairs)

    def of(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of flat rows [P, n], layer by layer: [P, in + 1, out], the last row being the biases."""
        views, offset = [], self.start
        for inputs, outputs in self.pairs:
            stop = offset + (inputs + 1) * outputs
            views.append(flat[:, offset:stop].unflatten(1, (inputs + 1, outputs)))
            offset = stop
        return views

    @torch.no_grad()
    def initialise(
        self, row: torch.Tensor, generator: torch.Generator, zero_last: bool, fans: Sequence[int] | None = None
    ) -> None:
        """Glorot-uniform weights and zero biases in row [1, n]; the last layer may start at zero.

        Weights are uniform within ±√(6 / fans), with fans = inputs + outputs of each layer if not given.
        """
        fans = [inputs + outputs for inputs, outputs in self.pairs] if fans is None else fans
        for index, (layer, fan) in enumerate(zip(self.of(row), fans, strict=True)):
            draw = torch.rand(*self.pairs[index], generator=generator, dtype=torch.float64)
            layer.zero_()
            if not (zero_last and index == len(fans) - 1):
                layer[0, :-1].copy_((2.0 * draw - 1.0) * math.sqrt(6.0 / fan))


class Network(Layers):
    """y = W_L tanh(... tanh(W_1 x + b_1) ...) + b_L.

    Args:
        widths: of the input, the hidden layers and the output.
        offset: where the parameters begin.
    """

    def __init__(self, widths: Sequence[int], offset: int = 0):
        super().__init__(list(pairwise(sizes("layers of at least 1 unit", widths))), offset)

    def __call__(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[P, rows, out] for x [P, rows, in]."""
        *hidden, last = self.of(theta)
        for layer in hidden:
            x = torch.tanh(torch.baddbmm(layer[:, -1:], x, layer[:, :-1]))
        return torch.baddbmm(last[:, -1:], x, last[:, :-1])

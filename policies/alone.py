"""Members of policies as torch modules of their own, without the member axis."""

from collections.abc import Sequence

import torch
from torch import nn


class Alone(nn.Module):
    """A policy of one member without its axis: [b, *state_shape] to [b, *control_shape]."""

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.policy(state.unsqueeze(0)).squeeze(0)


def dense(layers: Sequence[tuple[torch.Tensor, torch.Tensor | None]], shape: Sequence[int]) -> nn.Sequential:
    """Affine layers (weights [in, out], biases [out] or None) with tanh between them; the output is of this shape."""
    parts: list[nn.Module] = [nn.Flatten()]
    for weights, biases in layers:
        layer = nn.Linear(*weights.shape, bias=biases is not None, dtype=weights.dtype, device=weights.device)
        layer.weight.data.copy_(weights.t())
        if biases is not None:
            layer.bias.data.copy_(biases)
        parts += [layer, nn.Tanh()]
    return nn.Sequential(*parts[:-1], nn.Unflatten(1, tuple(shape)))

"""Clipping of gradients, applied after estimators are combined and before the optimiser."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine import SettingError


@dataclass(frozen=True)
class Clipping:
    """How each member's gradient is bounded: "none", by "value", or by the global "norm" of the member's row.

    The factor of the norm is that of `torch.nn.utils.clip_grad_norm_`, without its small offset.
    """

    kind: str = "none"
    limit: float = 1.0

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise SettingError(f"Expected clipping among {', '.join(_KINDS)}, got {self.kind!r}.")
        if not self.limit > 0:
            raise SettingError(f"Expected a clipping limit above 0, got {self.limit}.")

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """Rows [P, n], each clipped by itself."""
        return _KINDS[self.kind](gradient, self.limit)


def _by_norm(gradient: torch.Tensor, limit: float) -> torch.Tensor:
    return gradient * (limit / gradient.norm(dim=1, keepdim=True).clamp_min(limit))


_KINDS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "none": lambda gradient, limit: gradient,
    "value": lambda gradient, limit: gradient.clamp(-limit, limit),
    "norm": _by_norm,
}

"""Clipping of gradients, applied after estimators are combined and before the optimiser."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine import SettingError
from engine.checks import above_zero
from engine.norms import limited


@dataclass(frozen=True)
class Clipping:
    """How each member's gradient is bounded: "none", by "value", or by the global "norm" of the member's row.

    The factor of the norm is that of `torch.nn.utils.clip_grad_norm_`, without its small offset, and right for every
    finite gradient, also where its square is beyond the precision. A row with a component that is not finite stays as
    it is, so that it never passes for a finite one. An infinite limit bounds nothing.
    """

    kind: str = "none"
    limit: float = 1.0

    def __post_init__(self):
        if not isinstance(self.kind, str) or self.kind not in _KINDS:
            raise SettingError(f"Expected clipping among {', '.join(_KINDS)}, got {self.kind!r}.")
        object.__setattr__(self, "limit", above_zero("a clipping limit above 0", self.limit))

    @property
    def text(self) -> str:
        """The canonical text, which `clipping_named` reads: without a limit where it is 1."""
        plain = self.kind == "none" or self.limit == 1.0
        return self.kind if plain else f"{self.kind}({repr(self.limit).removesuffix('.0')})"

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """Rows [P, n], each clipped by itself."""
        return _KINDS[self.kind](gradient, self.limit)


def _by_value(gradient: torch.Tensor, limit: float) -> torch.Tensor:
    # Clamped, an infinite component would be a finite one.
    finite = torch.isfinite(gradient).all(1, keepdim=True)
    limit = min(limit, torch.finfo(gradient.dtype).max)
    return torch.where(finite, gradient.clamp(-limit, limit), gradient)


def clipping_named(text: str) -> Clipping:
    """The clipping that a text describes: none, norm, value, or one with its limit, as norm(0.5); else SettingError."""
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if found is None or found["kind"] not in _KINDS:
        raise SettingError(f"Expected clipping among {', '.join(_KINDS)} or with a limit, as norm(0.5), got {text!r}.")
    if found["limit"] is None:
        return Clipping(found["kind"])
    if found["kind"] == "none":
        raise SettingError(f"Expected no clipping as none, without a limit, got {text!r}.")
    return Clipping(found["kind"], float(found["limit"]))


_TEXT = re.compile(r"\s*(?P<kind>[a-z]+)\s*(?:\(\s*(?P<limit>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf)\s*\))?\s*")
_KINDS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "none": lambda gradient, limit: gradient,
    "value": _by_value,
    "norm": limited,
}


def check_clipping(clipping: object) -> None:
    """SettingError unless this is a clipping."""
    if not isinstance(clipping, Clipping):
        raise SettingError(f"Expected a clipping such as Clipping('norm', 1.0), got {clipping!r}.")

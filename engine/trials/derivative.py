"""What Taichi makes of a tape's kernel beside central differences of the kernel, along a random direction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine import runtime
from engine.trials.differences import Comparison, Departure, element


@dataclass(frozen=True)
class Wrong:
    """Where an adjoint is not the derivative.

    Attributes:
        array: which of them; place: of the element in it, as in "[2, 0]".
        analytic: the slope of g · results by the adjoint; numeric: by central differences.
    """

    array: int
    place: str
    analytic: float
    numeric: float


class Alone:
    """A kernel as a function of one number α: its arrays are x + (α - 1) d, and d/dα of g · results is asked for.

    To be used in a child of the process, since the kernel writes where it always does.

    Args:
        arrays: all different, what the kernel reads and writes; gradients: a buffer for that of each.
        launch, pull_back: the kernel and its adjoint on them.
    """

    def __init__(
        self,
        arrays: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        launch: Callable[[], None],
        pull_back: Callable[[], None],
    ):
        self.arrays, self.gradients, self.launch, self.pull_back = arrays, gradients, launch, pull_back
        self.start = [array.detach().clone() for array in arrays]
        launch()
        changed = [not torch.equal(array.detach(), start) for array, start in zip(arrays, self.start, strict=True)]
        draw = torch.Generator().manual_seed(0)
        parts = [_direction(start, own, draw).flatten() for start, own in zip(self.start, changed, strict=True)]
        self.direction, self.counts = torch.cat(parts), [len(part) for part in parts]
        self.changed = [index for index, own in enumerate(changed) if own]
        self.weights = _normal((sum(self.counts[index] for index in self.changed),), draw)

    def wrong(self) -> Wrong | None:
        """An element for which the adjoint is not the derivative, or None.

        All are looked at together. Steps and kinks of many elements add up to what looks like a slope, so that half of
        them after half is looked at where the adjoint departs, until one is left.
        """
        if not self.changed:
            return None
        whole = self.direction
        chosen = torch.arange(len(whole), device=whole.device)
        found = self._departure(whole, chosen)
        while found is not None and len(chosen) > 1:
            for half in chosen.tensor_split(2):
                found, chosen = self._departure(whole, half), half
                if found is not None:
                    break
        return None if found is None else self._named(int(chosen), whole, found)

    def _departure(self, whole: torch.Tensor, chosen: torch.Tensor) -> Departure | None:
        self.direction = torch.zeros_like(whole).index_copy_(0, chosen, whole[chosen])
        one = torch.ones(1, 1, dtype=whole.dtype, device=whole.device)
        comparison = Comparison(self._values, self._slopes, one, one[:, :0], self.weights.unsqueeze(0))
        return next(iter(comparison.departures()), None)

    def _named(self, flat: int, whole: torch.Tensor, found: Departure) -> Wrong:
        array = 0
        scale = float(whole[flat])
        while flat >= self.counts[array]:
            flat, array = flat - self.counts[array], array + 1
        return Wrong(array, element(flat, self.start[array].shape), found.analytic / scale, found.numeric / scale)

    def _put(self, alpha: float) -> None:
        for array, start, part in zip(self.arrays, self.start, self.direction.split(self.counts), strict=True):
            array.detach().copy_(start + (alpha - 1.0) * part.view_as(start))

    def _values(self, alphas: torch.Tensor, _nothing: torch.Tensor) -> torch.Tensor:
        rows = []
        for alpha in alphas.flatten().tolist():
            self._put(alpha)
            self.launch()
            rows.append(torch.cat([self.arrays[index].detach().flatten() for index in self.changed]))
        return torch.stack(rows)

    def _slopes(self, alphas: torch.Tensor, _nothing: torch.Tensor, weights: torch.Tensor):
        found = []
        for alpha, row in zip(alphas.flatten().tolist(), weights, strict=True):
            self._values(torch.tensor([alpha]), _nothing)
            for gradient in self.gradients:
                gradient.zero_()
            parts = row.split([self.counts[index] for index in self.changed])
            for index, part in zip(self.changed, parts, strict=True):
                self.gradients[index].copy_(part.view_as(self.gradients[index]))
            self.pull_back()
            gradient = torch.cat([gradient.flatten() for gradient in self.gradients])
            found.append(float(gradient.double() @ self.direction.double()))
        return torch.tensor(found, dtype=alphas.dtype).view(-1, 1), _nothing


def _normal(shape: Sequence[int], draw: torch.Generator) -> torch.Tensor:
    here = runtime.current()
    return torch.randn(tuple(shape), generator=draw, dtype=torch.float64).to(dtype=here.dtype, device=here.device)


def _direction(start: torch.Tensor, changed: bool, draw: torch.Generator) -> torch.Tensor:
    """Random, as large as each value is, where that is 0 as others are; 0 of what the kernel writes stays.

    As large as others, a small value might leave what a kernel does near 0 behind at any step that rounding allows.
    """
    size = start.abs()
    if not changed:
        size = torch.where(size > 0, size, float(size.square().mean().sqrt()) or 1.0)
    return size * _normal(start.shape, draw).to(size)

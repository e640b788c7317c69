"""A pull-back against central differences of the step, with no more belief in the differences than they deserve.

Along one component of the input, D(h) = (φ(z + h) - φ(z - h)) / 2h with φ = g·S. The step sizes that serve depend on
curvature, on rounding and on the nearest kink, none of which is known. So a departure of the pull-back from D is
believed only where three neighbouring step sizes, the smallest above rounding, agree with each other ten times better
than with the pull-back, and where the two one-sided differences do not include its value as they would at a kink.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine import runtime

_FIRST = {"float64": (1e-4, 1e-6), "float32": (0.1, 1e-2)}
"""Step sizes of the first look, relative to max(1, |z|)."""
_LADDER = {"float64": [10.0**-k for k in range(10)], "float32": [10.0 ** (-k / 2) for k in range(13)]}
"""Step sizes that judge what the first look leaves open."""
_RELATIVE = {"float64": 1e-6, "float32": 1e-4}
"""Relative departures below these are not told apart from rounding in a long step."""
_AT_ONCE = 2**21  # numbers in the perturbed inputs that are made together

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(states [N, n], controls [N, m]) -> next states [N, n], for any N."""
PullBack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(states, controls, next adjoints [N, n]) -> adjoints [N, n], cotangents [N, m]."""


@dataclass(frozen=True)
class Departure:
    """Where a pull-back is not what central differences say.

    Attributes:
        row: which of the points.
        index: which component of the state, or of the control after those.
        analytic: gᵀ ∂S/∂z_index by the pull-back.
        numeric: the same by central differences; NaN where they do not converge.
        kink: whether the one-sided differences differ, so that no derivative exists.
    """

    row: int
    index: int
    analytic: float
    numeric: float
    kink: bool = False


class Comparison:
    """A pull-back beside central differences at K points.

    Args:
        step, pull_back: the system.
        states: [K, n]; controls: [K, m]; weights: [K, n], the adjoints g that are pulled back.
    """

    def __init__(
        self, step: Step, pull_back: PullBack, states: torch.Tensor, controls: torch.Tensor, weights: torch.Tensor
    ):
        precision = runtime.current().precision
        self.first, self.ladder, self.relative = _FIRST[precision], _LADDER[precision], _RELATIVE[precision]
        self.step, self.split = step, states.shape[1]
        self.points, self.weights = torch.cat([states, controls], 1), weights
        analytic = torch.cat(pull_back(states, controls, weights), 1)
        self.analytic = analytic.double().cpu()
        nearby = self._nearby(self.points)
        near = torch.cat(
            pull_back(nearby[:, : self.split].contiguous(), nearby[:, self.split :].contiguous(), weights), 1
        )
        self.analytic_noise = (near - analytic).abs().amax(1).double().cpu().nan_to_num(0.0, 0.0, 0.0)
        value = step(states, controls).double().cpu()
        self.size = (value * weights.double().cpu()).abs().sum(1)
        self.noise = self._noise()

    def departures(self, indices: Sequence[int] | None = None) -> list[Departure]:
        """Every departure among the components `indices` (all by default), the largest of each point first."""
        chosen = torch.arange(self.points.shape[1]) if indices is None else torch.as_tensor(indices)
        rows = torch.arange(len(self.points)).repeat_interleave(len(chosen))
        columns = chosen.repeat(len(self.points))
        analytic = self.analytic[rows, columns]
        unsettled = torch.ones(len(rows), dtype=torch.bool)
        floor = self._rounding(self.first[0])[rows]
        for h in self.first:
            central, _, _ = self._differences(rows, columns, h)
            larger = torch.maximum(analytic.abs(), central.abs())
            unsettled &= ~((analytic - central).abs() <= self.relative * larger + floor)
        found = self._judge(rows[unsettled], columns[unsettled], analytic[unsettled])
        return sorted(found, key=lambda at: (at.row, -_size(at.analytic - at.numeric)))

    def _judge(self, rows: torch.Tensor, columns: torch.Tensor, analytic: torch.Tensor) -> list[Departure]:
        if not len(rows):
            return []
        tried = [self._differences(rows, columns, h) for h in self.ladder]
        central, ahead, behind = (torch.stack(part) for part in zip(*tried, strict=True))  # [steps, candidates]
        rounding = torch.stack([self._rounding(h)[rows] for h in self.ladder])
        found = []
        for at in range(len(rows)):
            row, value = int(rows[at]), float(analytic[at])
            judged = self._plateau(value, central[:, at], ahead[:, at], behind[:, at], rounding[:, at], row)
            if judged is not None:
                found.append(Departure(row, int(columns[at]), value, *judged))
        return found

    def _plateau(self, analytic, central, ahead, behind, rounding, row) -> tuple[float, bool] | None:
        """(numeric value, kink) of what the pull-back departs from, or None if it may be right."""
        finite = math.isfinite(analytic)
        gap = (
            (analytic - central).abs() if finite else torch.maximum(central.abs(), 1e-3 * self.weights[row].abs().sum())
        )
        usable = torch.isfinite(central) & torch.isfinite(ahead) & torch.isfinite(behind) & (10 * rounding <= gap)
        last = usable.nonzero().flatten()[-3:]
        if len(last) < 3:
            return None if finite else (math.nan, False)
        numeric, least = float(central[last[-1]]), float(gap[last].min())
        agree = float(central[last].max() - central[last].min()) <= 0.1 * least
        apart = float((ahead - behind).abs()[last[-1]])
        kink = apart > least
        if not finite:
            return (numeric, apart > 1e-3 * least) if agree else (math.nan, False)
        real = least > self.relative * max(abs(analytic), abs(numeric)) and least > 10 * self.analytic_noise[row]
        return (numeric, False) if agree and real and not kink else None

    def _differences(self, rows, columns, h: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Central, forward and backward differences of φ, in float64, for each pair of a point and a component."""
        at_once = max(1, _AT_ONCE // self.points.shape[1])
        parts = [
            self._differences_of(rows[first : first + at_once], columns[first : first + at_once], h)
            for first in range(0, len(rows), at_once)
        ]
        central, ahead, behind = (torch.cat(part) for part in zip(*parts, strict=True))
        return central, ahead, behind

    def _differences_of(self, rows, columns, h: float):
        count = torch.arange(len(rows))
        middle = self.points[rows]
        inputs = [middle.clone(), middle, middle.clone()]
        reach = h * middle[count, columns].abs().clamp(min=1.0)
        inputs[0][count, columns] += reach
        inputs[2][count, columns] -= reach
        weights = self.weights[rows].double().cpu()
        values = [(self._run(z).double().cpu() * weights) for z in inputs]
        at = [z[count, columns].double().cpu() for z in inputs]
        differences = [(values[i] - values[k]).sum(1) / (at[i] - at[k]) for i, k in ((0, 2), (0, 1), (1, 2))]
        return differences[0], differences[1], differences[2]

    def _run(self, points: torch.Tensor) -> torch.Tensor:
        return self.step(points[:, : self.split].contiguous(), points[:, self.split :].contiguous())

    def _rounding(self, h: float) -> torch.Tensor:
        """What rounding may add to a difference over h, per point."""
        epsilon = torch.finfo(runtime.current().dtype).eps
        return (4 * self.noise + 2 * epsilon * self.size) / h

    def _noise(self) -> torch.Tensor:
        """How far φ moves when its inputs do by a few units in the last place, per point."""
        weights = self.weights.double().cpu()
        around = [self.points, *(self._nearby(self.points, seed) for seed in range(4))]
        values = torch.stack([(self._run(z).double().cpu() * weights).sum(1) for z in around])
        return (values - values[0]).abs().nan_to_num(0.0, 0.0, 0.0).amax(0)

    def _nearby(self, points: torch.Tensor, seed: int = 4) -> torch.Tensor:
        epsilon = torch.finfo(points.dtype).eps
        draw = torch.rand(points.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return points * (1 + 2 * epsilon * (1 - 2 * draw)).to(points)


def _size(value: float) -> float:
    return abs(value) if math.isfinite(value) else math.inf


def component(index: int, state_shape: Sequence[int], control_shape: Sequence[int]) -> str:
    """The name of an input: state[1] or, after the state's components, control[0, 3]."""
    n = math.prod(state_shape)
    name, shape, index = ("state", state_shape, index) if index < n else ("control", control_shape, index - n)
    return name + element(index, shape)


def element(index: int, shape: Sequence[int]) -> str:
    """[i, j] of a flat index."""
    places = []
    for size in reversed(shape):
        places.append(index % size)
        index //= size
    return f"[{', '.join(str(place) for place in reversed(places))}]"

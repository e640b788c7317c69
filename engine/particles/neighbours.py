"""Neighbours within a radius, by cells: for sums over pairs that cost N instead of N².

    neighbours of i = {k : |x_i - x_k| ≤ radius},   |·| to the nearest image where an axis is periodic

Space is cut into cells at least `radius` wide, so that all neighbours of a particle are in the 3^dim cells around it.
Particles are sorted by cell, on the CPU by counting and elsewhere by torch's sort; kernels then gather over runs of
consecutive sorted particles, one thread for each particle and without atomics. An axis without period is unbounded: its
cells are counted modulo their number, so that cells far apart may share an entry, which costs a few distances and loses
no pair. No place is outside, and no array overflows.

Positions may be anything. A particle whose position is not finite neither has nor is a neighbour; coincident
particles are neighbours; a radius above the domain makes all pairs neighbours. At positions so far out that rounding
them moves a particle by a millionth of the radius, pairs at that distance from the radius may be missed.
"""

import math
from collections.abc import Iterable, Sequence

import taichi as ti
import torch

from engine import runtime
from engine.checks import is_number, one_of, positive, whole
from engine.errors import SettingError
from engine.launch import prepare
from engine.loops import Loop, loop_over
from engine.particles.cells import MARGIN, Cells, Grid

# Cells for each particle: enough that unlike places seldom share a cell, few enough to look up quickly.
_CELLS_PER_PARTICLE = 2


class Neighbours:
    """A neighbour search for batches of N particles in `dim` dimensions.

    A system builds the cells in each launch, `cells(batch).build(positions)`, in the step and again in the
    pull-back, so that nothing but states is stored; then its kernel gathers, for each sorted particle s of sample b,

        for run in range(grid.runs):
            first, last = neighbour_run(starts, cell[b, s], b, run, grid)
            ...                                             # sum over the sorted particles first ... last - 1

    where pairs beyond the radius turn up too and must count as nothing. `pairs` does so for lists of pairs.

    Args:
        dim: 2 or 3.
        particles: N, at least 1.
        radius: above 0; any size.
        period: length of each axis, None for an axis without end; or one for all axes.
    """

    def __init__(self, dim: int, particles: int, radius: float, period: float | Sequence[float | None] | None = None):
        dim = one_of("neighbours in 2 or 3 dimensions", dim, (2, 3))
        particles = whole("neighbours among at least 1 particle", particles)
        radius = positive("a finite radius above 0", radius)
        periods = tuple(period) if isinstance(period, Iterable) else (period,) * dim
        fine = [length is None or (is_number(length) and 0 < length < math.inf) for length in periods]
        if len(periods) != dim or not all(fine):
            raise SettingError(f"Expected {dim} finite periods above 0, or None for axes without end, got {period!r}.")
        self.dim, self.particles = dim, particles
        most = max(1, round((_CELLS_PER_PARTICLE * particles) ** (1 / dim)))
        counts = (most if length is None else int(max(1, min(most, length // (radius * MARGIN)))) for length in periods)
        lengths = tuple(0.0 if length is None else float(length) for length in periods)
        self.grid = Grid(tuple(counts), lengths, float(radius))
        self._cells: dict[int, Cells] = {}

    def cells(self, batch: int) -> Cells:
        """The cells of a batch of this size; launches share them, since they run one after another."""
        if batch not in self._cells:
            # Made inside an inference mode they could not be filled outside it.
            with torch.inference_mode(False):
                self._cells[batch] = Cells(self.grid, batch, self.particles)
        return self._cells[batch]

    def scratch_bytes(self, batch: int) -> int:
        """Bytes of the buffers for a batch of this size, and of what building them takes for a while."""
        places = 4 * math.prod(self.grid.counts) * 2
        keys = 28 if runtime.current().backend == "cuda" else 0  # of all samples at once, twice, and what sorts them
        return batch * (places + self.particles * (4 + 4 + 4 + 8 + 8 + 8 * self.dim + keys))

    def count(self, positions: torch.Tensor) -> int:
        """How many (sample, i, k) with i ≠ k are within the radius for `positions` [B, dim, N]."""
        return int(self._counted(positions)[1].long().sum())

    def pairs(self, positions: torch.Tensor) -> torch.Tensor:
        """All (sample, i, k) with i ≠ k within the radius for `positions` [B, dim, N], sorted: int64 [pairs, 3]."""
        arrays, counts = self._counted(positions)
        ends = counts.flatten().cumsum(0)
        total = int(ends[-1])
        if total >= 2**31:
            raise SettingError(f"Expected fewer than 2³¹ pairs to list, got {total}; take a smaller radius.")
        begins = (ends - counts.flatten()).view_as(counts).to(torch.int32)
        found = self._pairs_from(begins, arrays, counts, total).long()
        keys = (found[:, 0] * self.particles + found[:, 1]) * self.particles + found[:, 2]
        return found[keys.argsort()]

    def _counted(self, positions: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """What kernels over pairs read, and how many pairs each sorted particle has, [B, N]."""
        runtime.current().check("positions", positions, (len(positions), self.dim, self.particles))
        cells = self.cells(len(positions))
        cells.build(positions)
        ordered = torch.empty_like(positions, memory_format=torch.contiguous_format)
        cells.sort(positions, ordered)
        counts, arrays = torch.zeros_like(cells.order), (ordered, cells.order, cells.cell, cells.starts)
        self._pairs_from(torch.ones_like(counts), arrays, counts, 0)
        return arrays, counts

    def _pairs_from(
        self, begins: torch.Tensor, arrays: tuple[torch.Tensor, ...], counts: torch.Tensor, room: int
    ) -> torch.Tensor:
        """(sample, i, k) [room, 3] of the pairs of each sorted particle from its place in `begins` on; fills `counts`.

        The radius is no part of what the kernel is compiled for: one serves all that cut space into as many cells.
        """
        found = torch.zeros(max(1, room), 3, dtype=torch.int32, device=counts.device)
        grid, loop = self.grid._replace(radius=0.0), self._loop(len(counts))
        prepare(_find_pairs, *arrays, begins, found, counts, self.grid.radius**2, grid, loop)()
        return found[:room]

    def candidates(self, positions: torch.Tensor) -> int:
        """How many pairs a gather over `positions` [B, dim, N] looks at: the cost of one sum."""
        runtime.current().check("positions", positions, (len(positions), self.dim, self.particles))
        cells = self.cells(len(positions))
        cells.build(positions)
        counts = torch.zeros_like(cells.order)
        grid, loop = self.grid._replace(radius=0.0), self._loop(len(counts))
        prepare(_count_candidates, cells.cell, cells.starts, counts, grid, loop)()
        return int(counts.long().sum())

    def _loop(self, batch: int) -> Loop:
        return loop_over(batch, self.particles)


@ti.func
def neighbour_run(starts: ti.template(), cell, b, run, grid: ti.template()):
    """(first, last) of one of the `grid.runs` runs of sorted particles around `cell`, empty where first = last.

    Consecutive cells along the last axis are consecutive in the sorted order: they make one run, or two where the
    axis wraps. Together the runs hold each particle of the 3^dim cells once.
    """
    last_axis = ti.static(len(grid.counts) - 1)
    width = ti.static(grid.counts[last_axis])
    column, rest, choice = cell % width, cell // width, run // 2
    row, stride, inside = 0, 1, True
    for back in ti.static(range(last_axis)):
        count = ti.static(grid.counts[last_axis - 1 - back])
        place = rest % count + choice % 3 - 1
        rest, choice = rest // count, choice // 3
        if ti.static(count >= 3):
            place = (place + count) % count
        else:
            inside = inside and 0 <= place < count
        row += stride * place
        stride *= count
    low, high = ti.max(column - 1, 0), ti.min(column + 1, width - 1)
    if run % 2 == 1:
        low, high = 0, -1
        if ti.static(width >= 3):
            if column == 0:
                low, high = width - 1, width - 1
            elif column == width - 1:
                low, high = 0, 0
    first, last = 0, 0
    if inside and low <= high:
        first, last = starts[b, row * width + low], starts[b, row * width + high + 1]
    return first, last


@ti.func
def nearest_image(delta, axis: ti.template(), grid: ti.template()):
    """A difference of coordinates along `axis`, to the nearest image where the axis is periodic."""
    result = delta
    if ti.static(grid.periods[axis] > 0.0):
        period = ti.static(grid.periods[axis])
        result -= period * ti.round(delta / period)
    return result


@ti.func
def _near(ordered: ti.template(), b, s, k, radius_squared, grid: ti.template()):
    squared = 0.0
    for axis in ti.static(range(len(grid.counts))):
        delta = nearest_image(ordered[b, axis, s] - ordered[b, axis, k], axis, grid)
        squared += delta * delta
    return s != k and squared <= radius_squared


@ti.kernel
def _find_pairs(
    ordered: ti.types.ndarray(ndim=3),
    order: ti.types.ndarray(ndim=2),
    cell: ti.types.ndarray(ndim=2),
    starts: ti.types.ndarray(ndim=2),
    begins: ti.types.ndarray(ndim=2),
    found: ti.types.ndarray(ndim=2),
    counts: ti.types.ndarray(ndim=2),
    radius_squared: float,
    grid: ti.template(),
    loop: ti.template(),
):
    ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
    for b, s in ti.ndrange(
        loop.count if ti.static(loop.count > 0) else order.shape[0],
        loop.rows if ti.static(loop.rows > 0) else order.shape[1],
    ):
        place = begins[b, s]
        for run in range(grid.runs):
            first, last = neighbour_run(starts, cell[b, s], b, run, grid)
            for k in range(first, last):
                if _near(ordered, b, s, k, radius_squared, grid):
                    if place < found.shape[0]:
                        found[place, 0] = b
                        found[place, 1] = order[b, s]
                        found[place, 2] = order[b, k]
                    place += 1
        counts[b, s] = place - begins[b, s]


@ti.kernel
def _count_candidates(
    cell: ti.types.ndarray(ndim=2),
    starts: ti.types.ndarray(ndim=2),
    counts: ti.types.ndarray(ndim=2),
    grid: ti.template(),
    loop: ti.template(),
):
    ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
    for b, s in ti.ndrange(
        loop.count if ti.static(loop.count > 0) else cell.shape[0],
        loop.rows if ti.static(loop.rows > 0) else cell.shape[1],
    ):
        count = 0
        for run in range(grid.runs):
            first, last = neighbour_run(starts, cell[b, s], b, run, grid)
            count += last - first
        counts[b, s] = count

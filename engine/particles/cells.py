"""Particles sorted by the cell of a grid that they are in; `engine.particles.neighbours` says what for."""

import math
from collections.abc import Callable
from typing import NamedTuple

import taichi as ti
import torch

from engine import runtime
from engine.launch import Launch, prepare
from engine.loops import loop_over, serial_loop, torch_threads

# Cells are wider than the radius by more than what rounding moves a particle.
MARGIN = 1.0 + 1e-6


class Grid(NamedTuple):
    """What kernels know of the cells at compile time.

    Attributes:
        counts: cells along each axis.
        periods: length of each axis, 0 where it has no end.
        radius: of the neighbourhood.
    """

    counts: tuple[int, ...]
    periods: tuple[float, ...]
    radius: float

    @property
    def runs(self) -> int:
        """Runs of sorted particles that together hold all neighbours of one: pass 0 ... runs - 1."""
        return 2 * 3 ** (len(self.counts) - 1)


class Cells:
    """Particles of one batch sorted by cell: buffers that `build` fills and kernels read.

    Attributes:
        order: int32 [B, N], the particle at each place of the sorted order; stable, so results repeat bit for bit.
        cell: int32 [B, N], the cell of each sorted particle, ascending.
        starts: int32 [B, cells + 1], where each cell begins in the sorted order.
    """

    def __init__(self, grid: Grid, batch: int, particles: int):
        device, backend = runtime.current().device, runtime.current().backend
        make = lambda *shape: torch.zeros(*shape, dtype=torch.int32, device=device)  # noqa: E731
        self._grid, self._count = grid, math.prod(grid.counts)
        self.order, self.cell = make(batch, particles), make(batch, particles)
        self.starts = make(batch, self._count + 1)
        self._indices = torch.zeros(batch, particles, dtype=torch.int64, device=device)
        widths = [
            period / count if period else grid.radius * MARGIN
            for period, count in zip(grid.periods, grid.counts, strict=True)
        ]
        self._widths = torch.tensor(widths, dtype=torch.float64, device=device)
        self._build = self._on_cuda(batch, particles) if backend == "cuda" else self._with_torch(batch, particles)

    def build(self, positions: torch.Tensor) -> None:
        """Sort by `positions` [B, dim, N]; float64, as the widths are, so that float32 loses no pair to rounding."""
        self._build(positions)

    def _on_cuda(self, batch: int, particles: int) -> Callable[[torch.Tensor], None]:
        """By one sort of all samples: a key counts the cells of the samples before its own too."""
        device, size = self.order.device, batch * particles
        kind = torch.int32 if batch * self._count < 2**31 else torch.int64
        copied = torch.zeros(batch, len(self._grid.counts), particles, dtype=runtime.current().dtype, device=device)
        keys, ordered = (torch.zeros(size, dtype=kind, device=device) for _ in range(2))
        places = torch.zeros(size, dtype=torch.int64, device=device)
        loop = loop_over(batch, particles)
        find_keys = prepare(_find_keys, copied, self._widths, keys, self._grid, particles, loop)
        results = self.order, self.cell, self.starts, self._indices
        place = prepare(_place, ordered, places, *results, particles, self._count, loop)

        def build(positions: torch.Tensor) -> None:
            copied.copy_(positions)
            find_keys()
            torch.sort(keys, stable=True, out=(ordered, places))
            place()

        return build

    def _with_torch(self, batch: int, particles: int) -> Callable[[torch.Tensor], None]:
        """By torch, whose float64 Vulkan's kernels need not have; on the CPU then by counting."""
        keys = self._keys = torch.zeros_like(self.order)
        results = self.order, self.cell, self.starts, self._indices
        on_cpu = runtime.current().backend == "cpu"
        order = prepare(_count_and_place, keys, *results, serial_loop(batch)) if on_cpu else self._order_by(keys)
        counts, strides = (
            torch.tensor(values, dtype=torch.float64, device=keys.device).view(1, -1, 1)
            for values in (
                self._grid.counts,
                [math.prod(self._grid.counts[axis + 1 :]) for axis in range(len(self._grid.counts))],
            )
        )
        widths = self._widths.view(1, -1, 1)

        def build(positions: torch.Tensor) -> None:
            # Torch's threads would wait for those of Taichi, busy with the kernel before; ten times slower was seen.
            with torch_threads(False):
                found = positions.div(widths).floor_().remainder_(counts).nan_to_num_(0.0)
                keys.copy_(found.mul_(strides).sum(1))
                order()

        return build

    def _order_by(self, keys: torch.Tensor) -> Launch:
        bounds = torch.arange(self._count + 1, dtype=torch.int32, device=keys.device).expand(len(keys), -1).contiguous()

        def order() -> None:
            torch.sort(keys, dim=1, stable=True, out=(self.cell, self._indices))
            self.order.copy_(self._indices)
            torch.searchsorted(self.cell, bounds, out_int32=True, out=self.starts)

        return order

    def sort(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Write `values` [B, rows, N] in the sorted order to `out`."""
        torch.gather(values, 2, self._indices.unsqueeze(1).expand_as(values), out=out)


@ti.kernel
def _find_keys(
    positions: ti.types.ndarray(ndim=3),
    widths: ti.types.ndarray(dtype=ti.f64, ndim=1),
    keys: ti.types.ndarray(ndim=1),
    grid: ti.template(),
    particles: ti.template(),
    loop: ti.template(),
):
    """The cell of each particle, counted on from sample to sample."""
    for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else positions.shape[0], particles):
        cell = 0
        for axis in ti.static(range(len(grid.counts))):
            count = ti.static(grid.counts[axis])
            place = ti.floor(ti.cast(positions[b, axis, i], ti.f64) / widths[axis])
            inside = place - count * ti.floor(place / count)
            # Within bounds whatever a number that is not finite, or too large to be divided, becomes.
            cell = cell * count + ti.max(0, ti.min(ti.cast(inside, ti.i32), count - 1))
        keys[b * particles + i] = ti.cast(b, ti.i64) * ti.static(math.prod(grid.counts)) + cell


@ti.kernel
def _place(
    ordered: ti.types.ndarray(ndim=1),
    places: ti.types.ndarray(ndim=1),
    order: ti.types.ndarray(ndim=2),
    cell: ti.types.ndarray(ndim=2),
    starts: ti.types.ndarray(ndim=2),
    indices: ti.types.ndarray(ndim=2),
    particles: ti.template(),
    cells: ti.template(),
    loop: ti.template(),
):
    """What kernels read, from the keys in ascending order and where each of them was."""
    for b, s in ti.ndrange(loop.count if ti.static(loop.count > 0) else order.shape[0], particles):
        at, first = b * particles + s, ti.cast(b, ti.i64) * cells
        key, before = ti.cast(ordered[at] - first, ti.i32), -1
        if s > 0:
            before = ti.cast(ordered[at - 1] - first, ti.i32)
        k = ti.cast(places[at] - b * particles, ti.i32)
        order[b, s] = k
        indices[b, s] = k
        cell[b, s] = key
        for c in range(before + 1, key + 1):
            starts[b, c] = s
        if s == particles - 1:
            for c in range(key + 1, cells + 1):
                starts[b, c] = particles


@ti.kernel
def _count_and_place(
    keys: ti.types.ndarray(ndim=2),
    order: ti.types.ndarray(ndim=2),
    cell: ti.types.ndarray(ndim=2),
    starts: ti.types.ndarray(ndim=2),
    indices: ti.types.ndarray(ndim=2),
    serial: ti.template(),
):
    """A stable counting sort, one thread for each sample: ten times as fast as sorting and searching with torch."""
    ti.loop_config(serialize=serial)
    for b in range(keys.shape[0]):
        particles, cells = keys.shape[1], starts.shape[1] - 1
        for c in range(cells + 1):
            starts[b, c] = 0
        # Plain assignments, since += would be atomic. Counts stand one place late, so that the particles placed
        # below move each start to its cell.
        for k in range(particles):
            if keys[b, k] + 2 <= cells:
                starts[b, keys[b, k] + 2] = starts[b, keys[b, k] + 2] + 1
        for c in range(1, cells + 1):
            starts[b, c] = starts[b, c] + starts[b, c - 1]
        for k in range(particles):
            key = keys[b, k]
            place = starts[b, key + 1]
            starts[b, key + 1] = place + 1
            order[b, place] = k
            indices[b, place] = k
            cell[b, place] = key

"""Guidance of thousands of evaders: all pairs, or a flock that feels no further than a radius."""

import math

import taichi as ti
import torch

from engine import runtime
from engine.checks import finite, flag, positive
from engine.launch import Launch, prepare
from engine.loops import Loop, device_chunk, loop_over
from engine.particles.cells import Cells
from engine.particles.herding import DRIVER_DAMPING, EVADER_DAMPING
from engine.particles.neighbours import Neighbours, neighbour_run
from engine.particles.pairs import pair_adjoints, pair_forces
from engine.systems.guidance import FLIGHT, FLOCKING, Guidance, GuidanceParameters

# Explicit Euler lets damped velocities decay for time steps below this.
LONGEST_DT = 2.0 / max(DRIVER_DAMPING, EVADER_DAMPING)


@ti.data_oriented
class Swarm(Guidance):
    """D drivers steer E evaders in the plane, as in `Guidance`; E may be thousands, and evaders may be short-sighted.

        v̇_di = c₁ r + c₂ r⊥ - γ_d v_di + α Σ_{k≠i} (x_di - x_dk) / d_ik²
        v̇_ej = β Σ_i (x_ej - x_di) / d_ij² - γ_e v_ej + σ Σ_{k≠j} W(|x_ej - x_ek|) φ(d_jk) (x_ek - x_ej)

    Symbols, constants, units, shapes and integrator (explicit Euler, first order) as in `Guidance`, but β = `flight`
    and σ = `flocking`. W cuts the flocking of evaders off at R = `radius`:

        W(ρ) = s² (3 - 2s),   s = 4/3 (1 - ρ²/R²), at least 0 and at most 1

    that is 1 up to R/2, 0 from R on, and smooth enough that force and Jacobian are continuous. Without a radius W = 1
    and, with its β and σ, the physics is that of `Guidance`. Drivers are seen from anywhere.

    State [4, D + E]: rows x, y, vx, vy; drivers first. Control [2, D]: rows c₁, c₂.

    Drivers steer by a sum over all evaders, and going back each hears from all of them. Beside sums over neighbours
    these are long: devices, whose threads are many and slow, make them chunk by chunk, always in the same order.

    All pairs cost E². With cells the evaders are sorted by place in every step, and again in its adjoint, and each
    gathers from those around it (`engine.particles.neighbours`): E times the evaders near one. Either way there are no
    atomics. The plane has no end and no place is outside; coincident particles exert no force on each other. A state
    that is not finite makes its sample so, which trainers report.

    Where `separation`, `flight` or `flocking` vary between samples all pairs are looked at, cells or not.

    Source: Schnell and Thuerey (ICLR 2024), Sec. 3.2, after Ko and Zuazua (2020); the cut-off is ours.

    Args:
        drivers: D, at least 1.
        evaders: E, at least 1.
        dt: time step, below `LONGEST_DT` = 2/γ_e = 0.5, beyond which the damping itself is unstable.
        radius: R, above 0; None for no cut-off. Large ones cost what all pairs cost.
        cells: find evaders within the radius by cells; otherwise all pairs are looked at, with the same result.
        flocking: σ.
        flight: β.
        mean_centre, reversed_flocking: as in `Guidance`.
    """

    read_by_kernels = (*Guidance.read_by_kernels, "_flight", "_flock", "_grid")

    def __init__(
        self,
        drivers: int = 8,
        evaders: int = 2000,
        dt: float = 4 / 60,
        radius: float | None = None,
        cells: bool = True,
        flocking: float = FLOCKING,
        flight: float = FLIGHT,
        mean_centre: bool = False,
        reversed_flocking: bool = False,
    ):
        dt = finite(f"a time step dt above 0 and below {LONGEST_DT}", dt, lambda number: 0 < number < LONGEST_DT)
        if radius is not None:
            radius = positive("a finite radius above 0, or None for no cut-off", radius)
        flocking, flight = finite("a finite flocking", flocking), finite("a finite flight", flight)
        cells = flag("cells", cells)
        super().__init__(drivers, evaders, dt, mean_centre, reversed_flocking)
        self.name = "swarm"
        self.radius, self.flocking = radius, flocking
        self.constants = GuidanceParameters(flight=flight, flocking=flocking)
        self._set_forces(-1.0 if reversed_flocking else 1.0, math.inf if radius is None else float(radius))
        self._neighbours = Neighbours(2, evaders, radius) if radius is not None and cells else None
        self._grid = None if self._neighbours is None else self._neighbours.grid

    def prepare_step(self, state, control, next_state, parameters=None):
        if self._neighbours is None or parameters is not None:
            return super().prepare_step(state, control, next_state, parameters)
        cells, ordered = self._sorted(len(state))
        positions, rows = state.detach()[:, :2, self.drivers :], ordered[0, :, :2]
        add_up = self._prepare_sums(state, state, back=False)
        gather = self._prepare_gather(self._step_in_cells, state, control, next_state)

        def launch() -> None:
            cells.build(positions)
            cells.sort(positions, rows)
            add_up()
            gather()

        return launch

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None
    ):
        if self._neighbours is None or parameters is not None:
            return super().prepare_pull_back(
                state, control, next_adjoint, adjoint, cotangent, parameters, parameter_adjoint
            )
        cells, ordered = self._sorted(len(state))
        positions, rows = state.detach()[:, :2, self.drivers :], ordered[0, :, :2]
        velocities, adjoint_rows = next_adjoint.detach()[:, 2:, self.drivers :], ordered[0, :, 2:]
        add_up = self._prepare_sums(state, next_adjoint, back=True)
        gather = self._prepare_gather(self._pull_back_in_cells, state, control, next_adjoint, adjoint, cotangent)

        def launch() -> None:
            cells.build(positions)
            cells.sort(positions, rows)
            cells.sort(velocities, adjoint_rows)
            add_up()
            gather()

        return launch

    def _prepare_gather(self, kernel, *tensors: torch.Tensor) -> Launch:
        """A launch of a kernel that reads what is sorted."""
        cells, ordered = self._sorted(len(tensors[0]))
        whole = (tensor.unsqueeze(0) for tensor in tensors)
        found = cells.order, cells.cell, cells.starts, self._sums(len(tensors[0]))
        return prepare(kernel, *whole, ordered, *found, self._chunks, *self._loops(tensors[0]))

    def _prepare_sums(self, state: torch.Tensor, adjoint: torch.Tensor, back: bool) -> Launch:
        """A launch that adds up what the gather finds for drivers; nothing where each adds up its own."""
        chunks, batch = self._chunks, len(state)
        if chunks == 1:
            return lambda: None
        loop, whole = loop_over(batch, chunks), (state.unsqueeze(0), adjoint.unsqueeze(0))
        return prepare(self._add_up, *whole, self._sums(batch), chunks, loop, back)

    @property
    def _chunks(self) -> int:
        """In how many chunks sums over evaders are made."""
        return 1 if runtime.current().backend == "cpu" else -(-self.evaders // device_chunk(self.evaders))

    def _sums(self, batch: int) -> torch.Tensor:
        """[B, D + 1, 2, chunks], for `_add_up`."""
        return self.scratch("sums", batch, self.drivers + 1, 2, self._chunks)

    def prepare_sweep(self, arrays):
        return super().prepare_sweep(arrays) if self._neighbours is None else None

    def scratch_bytes(self, batch):
        if self._neighbours is None:
            return super().scratch_bytes(batch)
        numbers = 4 * self.evaders + 2 * (self.drivers + 1) * self._chunks
        return batch * numbers * runtime.current().dtype.itemsize + self._neighbours.scratch_bytes(batch)

    def launch_bytes(self):
        return super().launch_bytes() if self._neighbours is None else 20500

    def _sorted(self, batch: int) -> tuple[Cells, torch.Tensor]:
        """The cells, and [1, B, 4, E] in which evaders are sorted: rows x, y, and the adjoint of vx, vy."""
        assert self._neighbours is not None
        # Made inside an inference mode it could not be filled outside it.
        with torch.inference_mode(False):
            return self._neighbours.cells(batch), self.scratch("ordered", 1, batch, 4, self.evaders)

    def _loops(self, state: torch.Tensor) -> tuple[Loop, bool]:
        loop, in_lanes = super()._loops(state)
        if self._neighbours is not None:
            loop = loop_over(len(state), self.particles)
        return loop, in_lanes

    @ti.kernel
    def _add_up(
        self,
        state: ti.types.ndarray(ndim=4),
        adjoint: ti.types.ndarray(ndim=4),
        sums: ti.types.ndarray(ndim=4),
        chunks: ti.template(),
        loop: ti.template(),
        back: ti.template(),
    ):
        """For each chunk of evaders the sum of their places and, going back, for every driver what they pass to it."""
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, row, chunk in ti.ndrange(loop.count, self.drivers + 1 if ti.static(back) else 1, chunks):
            total = ti.Vector.zero(float, 2)
            for turn in range((self.particles - self.drivers + chunks - 1) // chunks):
                # Threads side by side read what lies side by side.
                k = self.drivers + turn * chunks + chunk
                if k < self.particles:
                    if row == 0:
                        total += ti.Vector([state[0, b, 0, k], state[0, b, 1, k]])
                    elif ti.static(back):
                        total += self._chased(state, adjoint, 0, 0, b, row - 1, k, k + 1, self._flight, False)
            for axis in ti.static(range(2)):
                sums[b, row, axis, chunk] = total[axis]

    @ti.func
    def _total(self, sums: ti.template(), b, row, chunks: ti.template()):
        total = ti.Vector.zero(float, 2)
        for chunk in range(chunks):
            for axis in ti.static(range(2)):
                total[axis] += sums[b, row, axis, chunk]
        return total

    @ti.func
    def _evaders_centre(self, state: ti.template(), sums: ti.template(), b, chunks: ti.template()):
        centre = ti.Vector.zero(float, 2)
        if ti.static(chunks > 1):
            centre = self.centre_scale * self._total(sums, b, 0, chunks)
        else:
            centre = self._centre(state, 0, b)
        return centre

    @ti.func
    def _passed_to_driver_in_cells(
        self, state: ti.template(), control: ti.template(), next_adjoint: ti.template(), sums: ti.template(), b, i,
        chunks: ti.template(), in_lanes: ti.template(),
    ):  # fmt: skip
        chased = ti.Vector.zero(float, 2)
        if ti.static(chunks > 1):
            chased = self._total(sums, b, i + 1, chunks)
        else:
            first, last = ti.static(self.drivers, self.particles)
            chased = self._chased(state, next_adjoint, 0, 0, b, i, first, last, self._flight, in_lanes)
        return self._passed_to_driver(state, control, next_adjoint, 0, 0, b, i, chased, in_lanes, state, False)

    @ti.kernel
    def _step_in_cells(
        self,
        state: ti.types.ndarray(ndim=4),
        control: ti.types.ndarray(ndim=4),
        next_state: ti.types.ndarray(ndim=4),
        ordered: ti.types.ndarray(ndim=4),
        order: ti.types.ndarray(ndim=2),
        cell: ti.types.ndarray(ndim=2),
        starts: ti.types.ndarray(ndim=2),
        sums: ti.types.ndarray(ndim=4),
        chunks: ti.template(),
        loop: ti.template(),
        in_lanes: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, place in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[1], self.particles):
            i, acceleration = place, ti.Vector.zero(float, 2)
            position, velocity = ti.Vector.zero(float, 2), ti.Vector.zero(float, 2)
            if place < self.drivers:
                position = ti.Vector([state[0, b, 0, i], state[0, b, 1, i]])
                velocity = ti.Vector([state[0, b, 2, i], state[0, b, 3, i]])
                centre = self._evaders_centre(state, sums, b, chunks)
                acceleration = self._steered(state, control, 0, b, i, centre, in_lanes, state, False)
            else:
                # What is sorted already is read where it is sorted: elsewhere each row misses the cache.
                s = place - self.drivers
                i = self.drivers + order[b, s]
                position = ti.Vector([ordered[0, b, 0, s], ordered[0, b, 1, s]])
                velocity = ti.Vector([state[0, b, 2, i], state[0, b, 3, i]])
                acceleration = pair_forces(state, 0, b, position, 0, self.drivers, self._flight, in_lanes)
                acceleration -= EVADER_DAMPING * velocity
                for run in range(self._grid.runs):
                    first, last = neighbour_run(starts, cell[b, s], b, run, self._grid)
                    if first < last:
                        acceleration += pair_forces(ordered, 0, b, position, first, last, self._flock, in_lanes)
            for axis in ti.static(range(2)):
                next_state[0, b, axis, i] = position[axis] + self.dt * velocity[axis]
                next_state[0, b, 2 + axis, i] = velocity[axis] + self.dt * acceleration[axis]

    @ti.kernel
    def _pull_back_in_cells(
        self,
        state: ti.types.ndarray(ndim=4),
        control: ti.types.ndarray(ndim=4),
        next_adjoint: ti.types.ndarray(ndim=4),
        adjoint: ti.types.ndarray(ndim=4),
        cotangent: ti.types.ndarray(ndim=4),
        ordered: ti.types.ndarray(ndim=4),
        order: ti.types.ndarray(ndim=2),
        cell: ti.types.ndarray(ndim=2),
        starts: ti.types.ndarray(ndim=2),
        sums: ti.types.ndarray(ndim=4),
        chunks: ti.template(),
        loop: ti.template(),
        in_lanes: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, place in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[1], self.particles):
            i, physics = place, ti.Vector.zero(float, 4)
            if place < self.drivers:
                passed = self._passed_to_driver_in_cells(state, control, next_adjoint, sums, b, i, chunks, in_lanes)
                physics = self._back_in_time(next_adjoint, 0, b, i, passed, DRIVER_DAMPING)
                centre = self._evaders_centre(state, sums, b, chunks)
                steering = self._pull_back_control(state, next_adjoint, centre, 0, 0, b, i)
                cotangent[0, b, 0, i] += steering[0]
                cotangent[0, b, 1, i] += steering[1]
            else:
                s = place - self.drivers
                i = self.drivers + order[b, s]
                at = ti.Vector([ordered[0, b, 0, s], ordered[0, b, 1, s]])
                velocity = ti.Vector([ordered[0, b, 2, s], ordered[0, b, 3, s]])
                flight = pair_adjoints(
                    state, next_adjoint, 0, 0, b, at, velocity, 0, self.drivers, self._flight, 0.0, in_lanes
                )
                for d in range(self.drivers):
                    flight -= self.centre_scale * self._pull_back_steering(control, next_adjoint, 0, 0, b, d)
                for run in range(self._grid.runs):
                    first, last = neighbour_run(starts, cell[b, s], b, run, self._grid)
                    if first < last:
                        flight += pair_adjoints(
                            ordered, ordered, 0, 0, b, at, velocity, first, last, self._flock, 1.0, in_lanes
                        )
                physics = self._back_in_time(next_adjoint, 0, b, i, flight, EVADER_DAMPING)
            for row in ti.static(range(4)):
                adjoint[0, b, row, i] = physics[row]

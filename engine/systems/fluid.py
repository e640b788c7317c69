"""A weakly compressible fluid of particles in a box, stirred by jets.

Longer than other files: each step and its adjoint are several launches, whose buffers and kernels belong side by side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import taichi as ti
import torch

from engine import runtime
from engine.checks import finite, flag, not_negative, positive, real, several, whole
from engine.errors import SettingError
from engine.launch import Launch, prepare
from engine.loops import LANES, Loop, device_chunk, loop_over
from engine.particles.cells import Cells
from engine.particles.drift import Drift
from engine.particles.jets import CHUNK, JET_DAMPING, Jets
from engine.particles.neighbours import Neighbours
from engine.particles.smoothing import RADIUS, Smoothing, check_room, fastest_flow, lattice_sum, longest_dt
from engine.particles.walls import DEPTH
from engine.system import System


class FluidParameters(NamedTuple):
    """Physical parameters, one value or one for each sample."""

    jet_strength: float
    viscosity: float
    gravity: float


@ti.data_oriented
class Fluid(Smoothing, Jets, Drift, System):
    """N particles of fluid in a closed box in 2 or 3 dimensions, and J jets that push whatever is near them.

        z_i = V Σ_k W(r_ik),   W(r) = α w⁴ (1 + 4 |r|/R),   w = 1 - |r|/R, at least 0,   r_ik = x_i - x_k
        P_i = c²/7 (z_i⁵ - z_i⁻²), at least 0
        v̇_i = -V Σ_k T_ik ∇W(r_ik) + g + F Σ_j f_j E(x_i - y_j) + walls
        T_ik = P_i + P_k - 2 (dim + 2) ν v_ik·r_ik / (|r_ik|² + η²),   v_ik = v_i - v_k
        E(r) = (1 - |r|²/J²)³, at least 0

    z is density over rest density, P pressure over density squared (Tait's equation; no tension, so that surfaces stay
    whole), c = `sound_speed`, ν = `viscosity`, g = `gravity` along the last axis downwards, R = 2.6 `spacing`, α such
    that ∫W = 1, V such that z = 1 on a square lattice of that spacing (near spacing^dim), η² = R²/400. y_j is the place
    of jet j and f_j its push, J = `jet_radius`, F = `jet_strength`. Density has no unit; lengths, times and
    accelerations are the caller's.

    Walls are mirrors: near one, sums go over the images of particles too, which gives a wall the fluid's own pressure
    and lets it slip. A particle outside the box is to its neighbours what its image inside is, so that crossing a wall
    changes no sum. A spring of frequency c / (spacing/2), from a quarter of a spacing on, catches single particles:
    those up to a speed of c/3 never cross, and particles outside the box are drawn back into it.

    Leapfrog, drift-kick-drift, with the control constant in each step; second order where viscosity is 0, else first:

        x½ = x + dt/2 v,   v' = v + dt a(x½, v),   x' = x½ + dt/2 v'

    `longest_dt` is the time step up to which it is stable while flows are slower than c; longer ones are refused, by
    the constants, not by what varies between samples. Jets that drive it faster need shorter ones.

    State [2·dim, J + N]: rows x, y, (z,) vx, vy, (vz); jets first. Control [dim, J]: the pushes f, each for F;
    with steered jets [2·dim, J], where the other rows are accelerations of the jets themselves, whose velocities decay
    at rate 1. Jets that are not steered keep their velocities. Parameters: F, ν and g, as `jet_strength`, `viscosity`
    and `gravity`.

    Every step, and again its adjoint, sorts the particles by cell and makes two sums over neighbours, each gathered
    by one thread for each particle, without atomics. With q̂ the adjoint of v' and σ_i that of z_i, particle
    i gathers

        σ_i = P'(z_i) V Σ_k -∇W·(q̂_i - q̂_k),   x̄½_i = V Σ_k ∂/∂r [-T ∇W·(q̂_i - q̂_k)] + (σ_i + σ_k) ∇W

    Friction is linear in the velocities: ν ν̄ = Σ_i v_i·v̄_i of what it passes to them.

    Source: Monaghan, Smoothed particle hydrodynamics (2005); kernel: Wendland (1995); the sums over images: Libersky
    and Petschek (1993).

    Args:
        particles: N, at least 1.
        jets: at least 1.
        size: the box is [0, size], one length for each of its 2 or 3 axes, each at least 2 R.
        spacing: between particles at rest.
        dt: time step; None for `longest_dt`.
        sound_speed: c, ten times the fastest flow for densities within 1%.
        viscosity: ν, 0 or more.
        gravity: g, 0 or more.
        jet_radius: above 0.
        jet_strength: the acceleration in the middle of a jet of push 1, above 0.
        steered: whether the jets' motion is controlled too.
    """

    read_by_kernels = (
        "dim", "size", "spacing", "dt", "particles", "jets", "bodies", "steered", "sound_speed", "viscosity", "gravity",
        "jet_radius", "jet_strength", "weight", "slope", "depth", "radius", "chunk", "chunks", "grid", "_spring",
    )  # fmt: skip
    positive_parameters, not_negative_parameters = ("jet_strength",), ("viscosity", "gravity")

    def __init__(
        self,
        particles: int,
        jets: int,
        size: Sequence[float],
        spacing: float,
        dt: float | None = None,
        sound_speed: float = 10.0,
        viscosity: float = 1e-3,
        gravity: float = 1.0,
        jet_radius: float = 0.1,
        jet_strength: float = 1.0,
        steered: bool = False,
    ):
        particles = whole("a fluid with at least 1 particle", particles)
        jets = whole("a fluid with at least 1 jet", jets)
        size = tuple(real("the size of a box as 2 or 3 lengths", one) for one in several("lengths of a box", size))
        if len(size) not in (2, 3):
            raise SettingError(f"Expected the size of a box as 2 or 3 lengths, got {size}.")
        spacing = positive("a finite spacing above 0", spacing)
        sound_speed = positive("a finite sound speed above 0", sound_speed)
        jet_radius = positive("a finite jet radius above 0", jet_radius)
        jet_strength = positive("a finite jet strength above 0", jet_strength)
        viscosity = not_negative("a finite viscosity of at least 0", viscosity)
        gravity = not_negative("a finite gravity of at least 0", gravity)
        self.radius = RADIUS * spacing
        check_room(size, self.radius)
        longest = longest_dt(spacing, sound_speed, viscosity, gravity)
        dt = longest if dt is None else dt
        dt = finite(f"a time step dt above 0 and at most {longest:.4g}", dt, lambda number: 0 < number <= longest)
        self.name = "fluid"
        self.dim, self.size, self.spacing, self.dt = len(size), size, spacing, dt
        self.particles, self.jets, self.steered = particles, jets, flag("steered", steered)
        self.bodies = jets + particles
        self.sound_speed, self.viscosity, self.gravity = sound_speed, viscosity, gravity
        self.jet_radius, self.jet_strength = jet_radius, jet_strength
        self.state_shape = (2 * self.dim, jets + particles)
        self.control_shape = ((2 if steered else 1) * self.dim, jets)
        self.constants = FluidParameters(jet_strength, viscosity, gravity)
        scale = lattice_sum(self.dim)
        # z = Σ w⁴ (1 + 4 s) / scale, and -V ∇W = slope w³ r.
        self.weight = 1.0 / scale
        self.slope = 20.0 / (scale * self.radius**2)
        self.depth = DEPTH * spacing
        self._spring = (2.0 * sound_speed / spacing) ** 2
        self.chunk = CHUNK if runtime.current().backend == "cpu" else device_chunk(particles)
        self.chunks = -(-particles // self.chunk)
        self._neighbours = Neighbours(self.dim, particles, self.radius)
        self.grid = self._neighbours.grid

    def sample(self, count, generator):
        """Particles on a lattice, each moved by up to a third of the spacing, and jets between them."""
        state = 2.0 * torch.rand(count, *self.state_shape, generator=generator, dtype=torch.float64) - 1.0
        sizes = torch.tensor(self.size, dtype=torch.float64).unsqueeze(1)
        axes = [torch.arange(0.5 * self.spacing, length, self.spacing, dtype=torch.float64) for length in self.size]
        places = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes[::-1], indexing="ij")][::-1])
        state[:, : self.dim, : self.jets] = 0.5 * sizes * (1.0 + state[:, : self.dim, : self.jets])
        moved = self.spacing / 3 * state[:, : self.dim, self.jets :]
        state[:, : self.dim, self.jets :] = places[:, : self.particles] + moved
        return self._as_here(state)

    def doubts(self, states):
        velocities = states[:, :, self.dim :, self.jets :]
        # By time, so that the squares are not as large as all states.
        squares = [torch.nan_to_num(now.square().sum(-2), posinf=0.0).max() for now in velocities]
        reached = float(torch.stack(squares).max().sqrt())
        held = fastest_flow(self.spacing, self.sound_speed, self.dt)
        if reached <= held:
            return None
        return (
            f"Expected a fluid slower than {held:.3g}, up to which its time step {self.dt:.3g} is stable with sound at "
            f"{self.sound_speed:.3g}, got particles at {reached:.3g}; raise sound_speed, or lower dt (by the task's "
            "safety)."
        )

    def prepare_step(self, state, control, next_state, parameters=None):
        cells, half, ordered, _ = self._buffers_for(state)
        sort = self._prepare_sort(state, None)
        loops = self._loops(state)
        find_pressures = prepare(self.find_pressures, ordered, cells.cell, cells.starts, *loops)
        arrays = half, ordered, cells.order, cells.cell, cells.starts, next_state, self.rows_or_none(parameters)
        advance = prepare(self._advance, state, control, *arrays, *loops, parameters is not None)

        def launch() -> None:
            sort()
            find_pressures()
            advance()

        return launch

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None
    ):
        cells, half, ordered, sums = self._buffers_for(state)
        kick = self.scratch("kick", len(state), self.dim, self.jets + self.particles)
        turned = self.scratch("turned", len(state), self.dim, self.particles)
        sort, loops = self._prepare_sort(state, turned), self._loops(state)
        drift_back = prepare(self.drift_back, state, next_adjoint, kick, turned, loop_over(len(state), state.shape[2]))
        find_pressures = prepare(self.find_pressures_back, ordered, cells.cell, cells.starts, *loops)
        rows, varied = self.rows_or_none(parameters), parameters is not None
        loop = loop_over(len(state), self.chunks)
        sum_jets = prepare(self.sum_jets, control, half, kick, cells.order, sums, rows, loop, varied)
        # What was sorted is not read again: its place takes each particle's part in the parameters' adjoint.
        works = self.scratch("inside", len(state), 2 * self.dim, self.particles)
        arrays = half, kick, ordered, cells.order, cells.cell, cells.starts, sums, adjoint, cotangent, rows, works
        pull_back = prepare(
            self._pull_back, control, next_adjoint, *arrays, *loops, varied, parameter_adjoint is not None
        )

        def launch() -> None:
            drift_back()
            sort()
            find_pressures()
            sum_jets()
            pull_back()
            if parameter_adjoint is not None:
                parameter_adjoint.add_(works[:, : len(self.constants)].sum(2))

        return launch

    def _prepare_sort(self, state: torch.Tensor, kicks: torch.Tensor | None) -> Launch:
        """A launch that finds x½ of all bodies and sorts the particles' x½, v and q̂, all as images inside the box.

        q̂ are the `kicks` [B, dim, N], where they are given.
        """
        cells, half, ordered, _ = self._buffers_for(state)
        inside = self.scratch("inside", len(state), 2 * self.dim, self.particles)
        drift = prepare(self.drift, state, half, inside, loop_over(len(state), state.shape[2]))
        fluid, rows = inside[:, : self.dim], self._rows(ordered)

        def launch() -> None:
            drift()
            cells.build(fluid)
            cells.sort(inside, rows[:, : 2 * self.dim])
            if kicks is not None:
                cells.sort(kicks, rows[:, 2 * self.dim :])

        return launch

    def scratch_bytes(self, batch):
        bodies = self.bodies
        numbers = (
            2 * self.dim * bodies
            + 3 * self.dim * self.particles
            + (3 * self.dim + 2) * (self.particles + LANES)
            + self.chunks * self.jets * 2 * self.dim
        )
        return batch * numbers * runtime.current().dtype.itemsize + self._neighbours.scratch_bytes(batch)

    def densities(self, state: torch.Tensor) -> torch.Tensor:
        """z [B, N] of states [B, *state_shape]: density over rest density."""
        runtime.current().check("state", state, (len(state), *self.state_shape))
        cells, _, ordered, _ = self._buffers_for(state)
        places = state.detach().clone()
        places[:, self.dim :] = 0.0  # so that x½ is x
        self._prepare_sort(places, None)()
        found = torch.zeros(len(state), self.particles, dtype=state.dtype, device=state.device)
        prepare(self.find_densities, ordered, cells.order, cells.cell, cells.starts, found, *self._loops(state))()
        return found

    def _buffers_for(self, state: torch.Tensor) -> tuple[Cells, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cells; x½ of all bodies [B, dim, J + N]; `ordered` as in `Smoothing`; jets' sums."""
        batch = len(state)
        # Made inside an inference mode they could not be filled outside it.
        with torch.inference_mode(False):
            return (
                self._neighbours.cells(batch),
                self.scratch("half", batch, self.dim, self.jets + self.particles),
                self.scratch("ordered", batch, 3 * self.dim + 2, self.particles + LANES),
                self.scratch("sums", batch, self.chunks, self.jets, 2 * self.dim),
            )

    def _rows(self, ordered: torch.Tensor) -> torch.Tensor:
        """x½, v and q̂ of the sorted particles, [B, 3·dim, N]; sums in lanes read beyond the last, and drop it."""
        return ordered[:, : 3 * self.dim, : self.particles]

    def _loops(self, state: torch.Tensor) -> tuple[Loop, int]:
        """The loop over the particles of all samples, and in how many lanes sums run."""
        return loop_over(len(state), self.particles), LANES if runtime.current().backend == "cpu" else 1

    @ti.kernel
    def _advance(
        self,
        state: ti.types.ndarray(ndim=3),
        control: ti.types.ndarray(ndim=3),
        half: ti.types.ndarray(ndim=3),
        ordered: ti.types.ndarray(ndim=3),
        order: ti.types.ndarray(ndim=2),
        cell: ti.types.ndarray(ndim=2),
        starts: ti.types.ndarray(ndim=2),
        next_state: ti.types.ndarray(ndim=3),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        lanes: ti.template(),
        varied: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, place in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[0], self.bodies):
            if place < self.jets:
                j = place
                for axis in ti.static(range(self.dim)):
                    velocity = state[b, self.dim + axis, j]
                    if ti.static(self.steered):
                        velocity += self.dt * (control[b, self.dim + axis, j] - JET_DAMPING * velocity)
                    next_state[b, self.dim + axis, j] = velocity
                    next_state[b, axis, j] = half[b, axis, j] + 0.5 * self.dt * velocity
            else:
                s = place - self.jets
                thickness = self.thickness(parameters, b, varied)
                pushed = self.gather(self.push, self.dim, ordered, cell, starts, b, s, lanes, thickness)
                acceleration = self.slope * pushed
                i = self.jets + order[b, s]
                x = self.vector(half, b, 0, i)
                for axis in ti.static(range(self.dim)):
                    _, side = self.fold(x[axis], axis)
                    acceleration[axis] = side * acceleration[axis] + self._spring * self.beyond_wall(x[axis], axis)
                acceleration[self.dim - 1] -= parameters[b, 2] if ti.static(varied) else self.gravity
                acceleration += self.pushed(control, half, x, self.strength(parameters, b, varied), b)
                for axis in ti.static(range(self.dim)):
                    velocity = state[b, self.dim + axis, i] + self.dt * acceleration[axis]
                    next_state[b, self.dim + axis, i] = velocity
                    next_state[b, axis, i] = x[axis] + 0.5 * self.dt * velocity

    @ti.kernel
    def _pull_back(
        self,
        control: ti.types.ndarray(ndim=3),
        next_adjoint: ti.types.ndarray(ndim=3),
        half: ti.types.ndarray(ndim=3),
        kick: ti.types.ndarray(ndim=3),
        ordered: ti.types.ndarray(ndim=3),
        order: ti.types.ndarray(ndim=2),
        cell: ti.types.ndarray(ndim=2),
        starts: ti.types.ndarray(ndim=2),
        sums: ti.types.ndarray(ndim=4),
        adjoint: ti.types.ndarray(ndim=3),
        cotangent: ti.types.ndarray(ndim=3),
        parameters: ti.types.ndarray(ndim=2),
        works: ti.types.ndarray(ndim=3),
        loop: ti.template(),
        lanes: ti.template(),
        varied: ti.template(),
        asked: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, place in ti.ndrange(loop.count if ti.static(loop.count > 0) else control.shape[0], self.bodies):
            strength = self.strength(parameters, b, varied)
            if place < self.jets:
                self.pull_back_jet(next_adjoint, kick, sums, adjoint, cotangent, strength, b, place)
            else:
                s, thickness = place - self.jets, self.thickness(parameters, b, varied)
                bent = self.gather(
                    self.push_back, ti.static(2 * self.dim), ordered, cell, starts, b, s, lanes, thickness
                )
                to_place = self.slope * ti.Vector([bent[axis] for axis in ti.static(range(self.dim))])
                dragged = self.slope * ti.Vector([bent[self.dim + axis] for axis in ti.static(range(self.dim))])
                i = self.jets + order[b, s]
                x, q = self.vector(half, b, 0, i), self.vector(kick, b, 0, i)
                from_jets, to_strength = self.pull_back_pushed(control, half, x, q, strength, b)
                if ti.static(asked):
                    friction = self.vector(ordered, b, self.dim, s).dot(dragged)
                    works[b, 0, i - self.jets] = self.dt * to_strength
                    works[b, 1, i - self.jets] = self.dt * 2.0 * (self.dim + 2) * friction
                    works[b, 2, i - self.jets] = -self.dt * q[self.dim - 1]
                for axis in ti.static(range(self.dim)):
                    _, side = self.fold(x[axis], axis)
                    to_place[axis] *= side
                    if self.beyond_wall(x[axis], axis) != 0.0:
                        to_place[axis] -= self._spring * q[axis]
                    to_position = next_adjoint[b, axis, i] + self.dt * (to_place[axis] + from_jets[axis])
                    adjoint[b, axis, i] = to_position
                    to_velocity = side * thickness * dragged[axis]
                    adjoint[b, self.dim + axis, i] = q[axis] + self.dt * (to_velocity + 0.5 * to_position)

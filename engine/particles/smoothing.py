"""Sums over neighbours of smoothed particles in a box whose walls are mirrors, forward and adjoint, for kernels."""

import math

import taichi as ti
import torch

from engine.errors import SettingError
from engine.particles.cells import Grid
from engine.particles.neighbours import neighbour_run
from engine.particles.walls import MirrorWalls

# The kernel's radius in particle spacings: about 21 neighbours in the plane, 74 in space.
RADIUS = 2.6
# Exponent of the equation of state.
STIFFNESS = 7
# |r| = √(r·r + this): changes no distance that rounding would notice, and gives |r| the derivative 0 at r = 0.
_TINY = 1e-30


@ti.data_oriented
class Smoothing(MirrorWalls):
    """The pair terms of `Fluid`, whose docstring defines the symbols, and how they are gathered.

    Rows of the sorted particles `ordered` [B, rows, N + LANES]: x½, v, q̂ (dim each), P, σ. Of particles outside the
    box they hold the image inside, which has the same sums over all images, turned. Sums in lanes read beyond the last
    particle and drop what they find. Derived classes set the attributes.

    Attributes:
        particles, sound_speed: of the fluid, as dim, size and radius are, which is R.
        weight, slope: z = weight Σ w⁴ (1 + 4 |r|/R), -V ∇W = slope w³ r.
        viscosity: ν.
        grid: the cells.
    """

    particles: int
    sound_speed: float
    weight: float
    slope: float
    viscosity: float
    grid: Grid

    @ti.kernel
    def find_densities(
        self,
        ordered: ti.types.ndarray(ndim=3),
        order: ti.types.ndarray(ndim=2),
        cell: ti.types.ndarray(ndim=2),
        starts: ti.types.ndarray(ndim=2),
        found: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        lanes: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, s in ti.ndrange(loop.count if ti.static(loop.count > 0) else order.shape[0], self.particles):
            total = self.gather(self.weigh, 1, ordered, cell, starts, b, s, lanes, 0.0)
            found[b, order[b, s]] = self.weight * total[0]

    @ti.kernel
    def find_pressures(
        self,
        ordered: ti.types.ndarray(ndim=3),
        cell: ti.types.ndarray(ndim=2),
        starts: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        lanes: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, s in ti.ndrange(loop.count if ti.static(loop.count > 0) else cell.shape[0], self.particles):
            total = self.gather(self.weigh, 1, ordered, cell, starts, b, s, lanes, 0.0)
            pressure, _ = self.pressure(self.weight * total[0])
            ordered[b, 3 * self.dim, s] = pressure

    @ti.kernel
    def find_pressures_back(
        self,
        ordered: ti.types.ndarray(ndim=3),
        cell: ti.types.ndarray(ndim=2),
        starts: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        lanes: ti.template(),
    ):
        """P, and σ."""
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, s in ti.ndrange(loop.count if ti.static(loop.count > 0) else cell.shape[0], self.particles):
            total = self.gather(self.weigh_back, 2, ordered, cell, starts, b, s, lanes, 0.0)
            pressure, derivative = self.pressure(self.weight * total[0])
            ordered[b, 3 * self.dim, s] = pressure
            ordered[b, 3 * self.dim + 1, s] = derivative * self.slope * total[1]

    @ti.func
    def vector(self, rows: ti.template(), b, first: ti.template(), i):
        return ti.Vector([rows[b, first + axis, i] for axis in range(self.dim)])

    @ti.func
    def thickness(self, parameters: ti.template(), b, varied: ti.template()):
        """2 (dim + 2) ν of sample b, by which friction is multiplied."""
        return 2.0 * (self.dim + 2) * (parameters[b, 1] if ti.static(varied) else self.viscosity)

    @ti.func
    def pressure(self, z):
        """P and P' at relative density z."""
        pressure, derivative = 0.0, 0.0
        if z > 1.0:
            scale = self.sound_speed**2 / STIFFNESS
            pressure = scale * (z**5 - 1.0 / z**2)
            derivative = scale * (5.0 * z**4 + 2.0 / z**3)
        return pressure, derivative

    @ti.func
    def gather(
        self,
        term: ti.template(),
        width: ti.template(),
        ordered: ti.template(),
        cell: ti.template(),
        starts: ti.template(),
        b,
        s,
        lanes: ti.template(),
        thickness,
    ):
        """Σ_k term(s, k), a vector of `width` ≤ 6, over sorted particles k around s and, near walls, their images."""
        # LLVM sums several short rows by vector instructions, but not one matrix.
        first_row, second_row = ti.Vector.zero(float, lanes), ti.Vector.zero(float, lanes)
        third_row, fourth_row = ti.Vector.zero(float, lanes), ti.Vector.zero(float, lanes)
        fifth_row, sixth_row = ti.Vector.zero(float, lanes), ti.Vector.zero(float, lanes)
        sums = ti.static([first_row, second_row, third_row, fourth_row, fifth_row, sixth_row])
        x = self.vector(ordered, b, 0, s)
        images = 1
        for axis in ti.static(range(self.dim)):
            if x[axis] < self.radius or x[axis] > self.size[axis] - self.radius:
                images = 2**self.dim
        for choice in range(images):
            mirror, offset, some = self.image(x, choice)
            for run in range(self.grid.runs * some):
                first, last = neighbour_run(starts, cell[b, s], b, run, self.grid)
                for block in range((last - first + lanes - 1) // lanes):
                    for lane in range(lanes):
                        k = first + block * lanes + lane
                        part = term(ordered, b, s, k, mirror, offset, thickness)
                        for row in ti.static(range(width)):
                            sums[row][lane] += ti.select(k < last, part[row], 0.0)
        result = ti.Vector.zero(float, width)
        for row in ti.static(range(width)):
            result[row] = sums[row].sum()
        return result

    @ti.func
    def _apart(self, ordered: ti.template(), b, s, k, mirror, offset):
        """r, |r| and w between s and the image of k."""
        r = self.vector(ordered, b, 0, s) - mirror * self.vector(ordered, b, 0, k) - offset
        length = ti.sqrt(r.dot(r) + _TINY)
        return r, length, ti.max(1.0 - length * (1.0 / self.radius), 0.0)

    @ti.func
    def weigh(self, ordered: ti.template(), b, s, k, mirror, offset, thickness):
        """w⁴ (1 + 4 |r|/R)."""
        _, length, w = self._apart(ordered, b, s, k, mirror, offset)
        return ti.Vector([w**4 * (1.0 + 4.0 / self.radius * length)])

    @ti.func
    def push(self, ordered: ti.template(), b, s, k, mirror, offset, thickness):
        """T w³ r."""
        r, _, w = self._apart(ordered, b, s, k, mirror, offset)
        v = self.vector(ordered, b, self.dim, s) - mirror * self.vector(ordered, b, self.dim, k)
        friction = thickness / (r.dot(r) + self.radius**2 / 400.0) * v.dot(r)
        return (ordered[b, 3 * self.dim, s] + ordered[b, 3 * self.dim, k] - friction) * w**3 * r

    @ti.func
    def weigh_back(self, ordered: ti.template(), b, s, k, mirror, offset, thickness):
        """w⁴ (1 + 4 |r|/R) and w³ r·(q̂ - q̂_k)."""
        r, length, w = self._apart(ordered, b, s, k, mirror, offset)
        q = self.vector(ordered, b, 2 * self.dim, s) - mirror * self.vector(ordered, b, 2 * self.dim, k)
        cubed = w**3
        return ti.Vector([cubed * w * (1.0 + 4.0 / self.radius * length), cubed * r.dot(q)])

    @ti.func
    def push_back(self, ordered: ti.template(), b, s, k, mirror, offset, thickness):
        """∂/∂r [T w³ r·(q̂ - q̂_k)] - (σ + σ_k) w³ r, and ∂/∂v of the same bracket where friction is multiplied by 1."""
        r, length, w = self._apart(ordered, b, s, k, mirror, offset)
        v = self.vector(ordered, b, self.dim, s) - mirror * self.vector(ordered, b, self.dim, k)
        q = self.vector(ordered, b, 2 * self.dim, s) - mirror * self.vector(ordered, b, 2 * self.dim, k)
        squared, work, apart = w * w, r.dot(q), r.dot(r) + self.radius**2 / 400.0
        both = 1.0 / (apart * length)  # one division instead of two, which take as long as all the products here
        inverse = both * length
        cubed, friction = squared * w, thickness * inverse * v.dot(r)
        stress = ordered[b, 3 * self.dim, s] + ordered[b, 3 * self.dim, k] - friction
        spread = ordered[b, 3 * self.dim + 1, s] + ordered[b, 3 * self.dim + 1, k]
        along = (
            cubed * (2.0 * friction * inverse * work - spread)
            - 3.0 / self.radius * stress * squared * (both * apart) * work
        )
        bent = stress * cubed * q + along * r - thickness * inverse * cubed * work * v
        dragged = -inverse * cubed * work * r
        return ti.Vector(
            [
                bent[row % self.dim] if ti.static(row < self.dim) else dragged[row % self.dim]
                for row in ti.static(range(2 * self.dim))
            ]
        )


def check_room(size: tuple[float, ...], radius: float) -> None:
    """SettingError for a box in which a particle may meet its image twice."""
    if not all(2 * radius <= length < math.inf for length in size):
        raise SettingError(
            f"Expected a box of at least 2 kernel radii, {2 * radius:.4g}, along each axis, got {size}; "
            "lower the spacing."
        )


def longest_dt(spacing: float, sound_speed: float, viscosity: float, gravity: float) -> float:
    """The time step up to which the scheme is stable while flows are slower than c: sound, friction and falling go no
    further than part of h = R/2. What is driven faster is squeezed, and sound is faster there.

    dt ≤ 0.4 h / c,   0.125 h² / ν,   0.25 √(h / g), as in Monaghan (2005)
    """
    h = 0.5 * RADIUS * spacing
    longest = 0.4 * h / sound_speed
    if viscosity > 0:
        longest = min(longest, 0.125 * h * h / viscosity)
    if gravity > 0:
        longest = min(longest, 0.25 * math.sqrt(h / gravity))
    return longest


def fastest_flow(spacing: float, sound_speed: float, dt: float) -> float:
    """The flow up to which a step dt is stable at rest density: with sound it goes no further than 0.8 h, so that a
    step of 0.4 h / c is for flows up to c.
    """
    return 0.4 * RADIUS * spacing / dt - sound_speed


def lattice_sum(dim: int) -> float:
    """Σ w⁴ (1 + 4 |r|/R) over a square lattice with spacing 1."""
    reach = range(-math.ceil(RADIUS), math.ceil(RADIUS) + 1)
    grids = torch.meshgrid(*[torch.tensor(reach, dtype=torch.float64)] * dim, indexing="ij")
    distance = torch.stack(grids).square().sum(0).sqrt() / RADIUS
    return float(((1.0 - distance).clamp(min=0.0) ** 4 * (1.0 + 4.0 * distance)).sum())

"""Bodies that attract each other by softened gravity, some of them with thrusters."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import taichi as ti
import torch

from engine import runtime
from engine.checks import finite, is_number, is_whole, not_negative, one_of, positive
from engine.errors import SettingError
from engine.launch import prepare
from engine.loops import LANES, Loop, lanes_pay, loop_over
from engine.system import System


class NBodyParameters(NamedTuple):
    """Physical parameters, one value or one for each sample; `first_mass` is that of body 0."""

    gravity: float
    softening: float
    first_mass: float


@ti.data_oriented
class NBody(System):
    """N bodies in 2 or 3 dimensions; every pair attracts.

        ẋ_i = v_i,   v̇_i = G Σ_{k≠i} m_k (x_k - x_i) / (|x_k - x_i|² + ε²)^{3/2} + u_i

    G = `gravity`, m = `masses`, ε = `softening`; u_i is the thrust of body i for each unit of its mass, 0 for bodies
    without thrusters. Units are the caller's. Bodies of mass 0 are pulled and do not pull; coincident bodies exert no
    force on each other.

    Leapfrog, drift-kick-drift, with the thrust constant in each step; second order, symplectic without thrust:

        x½ = x + dt/2 v,   v' = v + dt (a(x½) + u),   x' = x½ + dt/2 v'

    The frequency of any motion about any configuration is at most √(G Σm / ε³), and the scheme is stable for time
    steps below 2 over that; longer ones are refused, by the constants, not by what varies between samples.

    State [2·dim, N]: rows x, y, (z,) vx, vy, (vz). Control [dim, thrusters]: a column for each body in `thrusters`.
    Parameters: G, ε and the mass of the first body, as `gravity`, `softening` and `first_mass`.

    All pairs are summed for each body, in the step and in the adjoint alike, without atomics: with the symmetric
    Jacobian H_ik of (x_k - x_i) / (...)^{3/2} and q̂ the adjoint of v', body i gathers G Σ_k H_ik (m_i q̂_k - m_k q̂_i).

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration (2006), Sec. I.1.4; softening: Plummer (1911).

    Args:
        masses: of the bodies, 0 or more each.
        thrusters: which bodies have one, by index.
        dim: 2 or 3.
        dt: time step.
        gravity: G, 0 or more.
        softening: ε, above 0.
    """

    positive_parameters = ("softening",)

    def __init__(
        self,
        masses: Sequence[float] = (1.0, 1e-3, 1e-3),
        thrusters: Sequence[int] = (1, 2),
        dim: int = 2,
        dt: float = 0.02,
        gravity: float = 1.0,
        softening: float = 0.1,
    ):
        masses, thrusters = tuple(masses), tuple(thrusters)
        if not masses or not all(is_number(mass) and 0 <= mass < math.inf for mass in masses):
            raise SettingError(f"Expected at least 1 body, each of a finite mass of at least 0, got {_brief(masses)}.")
        masses = tuple(float(mass) for mass in masses)
        dim = one_of("n-body in 2 or 3 dimensions", dim, (2, 3))
        bodies = range(len(masses))
        known = all(is_whole(body) and body in bodies for body in thrusters)
        if not thrusters or not known or len(set(thrusters)) < len(thrusters):
            raise SettingError(
                f"Expected thrusters as one or more different bodies below {len(masses)}, got {_brief(thrusters)}."
            )
        softening = positive("a softening above 0", softening)
        gravity = not_negative("a gravity of at least 0", gravity)
        self.name = "n-body"
        self.masses, self.thrusters, self.dim = masses, thrusters, dim
        longest = longest_dt(masses, gravity, softening)
        wanted = f"a time step dt above 0 and below 2 √(ε³ / (G Σm)) = {longest:.4g}"
        self.dt = finite(wanted, dt, lambda number: 0 < number < longest)
        self.gravity, self.softening = gravity, softening
        self.bodies = len(masses)
        self.state_shape, self.control_shape = (2 * dim, self.bodies), (dim, len(thrusters))
        device = runtime.current().device
        self._masses = torch.tensor(masses, dtype=runtime.current().dtype, device=device)
        self.constants = NBodyParameters(gravity, softening, masses[0])
        self._columns = torch.full((self.bodies,), -1, dtype=torch.int32, device=device)
        self._columns[list(thrusters)] = torch.arange(len(thrusters), dtype=torch.int32, device=device)

    def prepare_step(self, state, control, next_state, parameters=None):
        half, _ = self._half_and_kick(state)
        arrays = state, control, self._masses, self._columns, half, next_state, self.rows_or_none(parameters)
        return prepare(self._step, *arrays, *self._loops(state), parameters is not None)

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None
    ):
        half, kick = self._half_and_kick(state)
        arrays = state, next_adjoint, self._masses, self._columns, half, kick, adjoint, cotangent
        rows = self.rows_or_none(parameters)
        pull_back = prepare(self._pull_back, *arrays, rows, *self._loops(state), parameters is not None)
        if parameters is None:
            return pull_back
        arrays = half, kick, self._masses, parameters, parameter_adjoint
        of_parameters = prepare(self._pull_back_parameters, *arrays, loop_over(len(state)))

        def launch() -> None:
            pull_back()
            of_parameters()

        return launch

    def scratch_bytes(self, batch):
        return 2 * batch * self.dim * self.bodies * runtime.current().dtype.itemsize

    def launch_bytes(self, varied=False):
        return super().launch_bytes(varied) + 2200

    def _half_and_kick(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where launches put x½ and q̂ [B, dim, N]."""
        shape = len(state), self.dim, self.bodies
        return self.scratch("half", *shape), self.scratch("kick", *shape)

    def _loops(self, state: torch.Tensor) -> tuple[Loop, bool]:
        """The loop over the bodies of all samples, and whether sums over bodies run in lanes."""
        return loop_over(len(state), self.bodies, self.bodies), lanes_pay(self.bodies)

    @ti.kernel
    def _step(
        self,
        state: ti.types.ndarray(ndim=3),
        control: ti.types.ndarray(ndim=3),
        masses: ti.types.ndarray(ndim=1),
        columns: ti.types.ndarray(ndim=1),
        half: ti.types.ndarray(ndim=3),
        next_state: ti.types.ndarray(ndim=3),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        in_lanes: ti.template(),
        varied: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[0], self.bodies):
            for axis in ti.static(range(self.dim)):
                half[b, axis, i] = state[b, axis, i] + 0.5 * self.dt * state[b, self.dim + axis, i]
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[0], self.bodies):
            acceleration = self._attracted(half, masses, b, i, in_lanes, parameters, varied)
            for axis in ti.static(range(self.dim)):
                if columns[i] >= 0:
                    acceleration[axis] += control[b, axis, columns[i]]
                velocity = state[b, self.dim + axis, i] + self.dt * acceleration[axis]
                next_state[b, self.dim + axis, i] = velocity
                next_state[b, axis, i] = half[b, axis, i] + 0.5 * self.dt * velocity

    @ti.kernel
    def _pull_back(
        self,
        state: ti.types.ndarray(ndim=3),
        next_adjoint: ti.types.ndarray(ndim=3),
        masses: ti.types.ndarray(ndim=1),
        columns: ti.types.ndarray(ndim=1),
        half: ti.types.ndarray(ndim=3),
        kick: ti.types.ndarray(ndim=3),
        adjoint: ti.types.ndarray(ndim=3),
        cotangent: ti.types.ndarray(ndim=3),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        in_lanes: ti.template(),
        varied: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[0], self.bodies):
            for axis in ti.static(range(self.dim)):
                half[b, axis, i] = state[b, axis, i] + 0.5 * self.dt * state[b, self.dim + axis, i]
                kick[b, axis, i] = next_adjoint[b, self.dim + axis, i] + 0.5 * self.dt * next_adjoint[b, axis, i]
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[0], self.bodies):
            gathered = self._attracted_pull_back(half, kick, masses, b, i, in_lanes, parameters, varied)
            for axis in ti.static(range(self.dim)):
                to_position = next_adjoint[b, axis, i] + self.dt * gathered[axis]
                adjoint[b, axis, i] = to_position
                adjoint[b, self.dim + axis, i] = kick[b, axis, i] + 0.5 * self.dt * to_position
                if columns[i] >= 0:
                    cotangent[b, axis, columns[i]] += self.dt * kick[b, axis, i]

    @ti.kernel
    def _pull_back_parameters(
        self,
        half: ti.types.ndarray(ndim=3),
        kick: ti.types.ndarray(ndim=3),
        masses: ti.types.ndarray(ndim=1),
        parameters: ti.types.ndarray(ndim=2),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        loop: ti.template(),
    ):
        for b in range(loop.count if ti.static(loop.count > 0) else half.shape[0]):
            gravity, softening, first = parameters[b, 0], parameters[b, 1], parameters[b, 2]
            found = ti.Vector.zero(float, 3)
            for i in range(self.bodies):
                x = ti.Vector([half[b, axis, i] for axis in range(self.dim)])
                q = self.dt * ti.Vector([kick[b, axis, i] for axis in range(self.dim)])
                for k in range(self.bodies):
                    r = ti.Vector([half[b, axis, k] - x[axis] for axis in range(self.dim)])
                    inverse = 1.0 / ti.sqrt(r.dot(r) + softening * softening)
                    work = r.dot(q) * inverse * inverse * inverse
                    mass = first if k == 0 else masses[k]
                    found[0] += mass * work
                    found[1] -= 3.0 * gravity * mass * softening * inverse * inverse * work
                    if k == 0:
                        found[2] += gravity * work
            for index in ti.static(range(3)):
                parameter_adjoint[b, index] += found[index]

    @ti.func
    def _attracted(
        self,
        half: ti.template(),
        masses: ti.template(),
        b,
        i,
        in_lanes: ti.template(),
        parameters: ti.template(),
        varied: ti.template(),
    ):
        """G Σ_k m_k (x_k - x_i) / d³, with the sample's own parameters if they vary."""
        result = ti.Vector.zero(float, self.dim)
        if ti.static(varied):
            squared = parameters[b, 1] * parameters[b, 1]
            r = ti.Vector([half[b, axis, 0] - half[b, axis, i] for axis in range(self.dim)])
            inverse = 1.0 / ti.sqrt(r.dot(r) + squared)
            more = (parameters[b, 2] - masses[0]) * inverse * inverse * inverse * r  # of the first body
            result = parameters[b, 0] * (self._pull(half, masses, b, i, in_lanes, squared) + more)
        else:
            result = self.gravity * self._pull(half, masses, b, i, in_lanes, self.softening * self.softening)
        return result

    @ti.func
    def _attracted_pull_back(
        self,
        half: ti.template(),
        kick: ti.template(),
        masses: ti.template(),
        b,
        i,
        in_lanes: ti.template(),
        parameters: ti.template(),
        varied: ti.template(),
    ):
        """G Σ_k H_ik (m_i q̂_k - m_k q̂_i), in the same way."""
        result = ti.Vector.zero(float, self.dim)
        if ti.static(varied):
            squared = parameters[b, 1] * parameters[b, 1]
            r = ti.Vector([half[b, axis, 0] - half[b, axis, i] for axis in range(self.dim)])
            h = (masses[0] - parameters[b, 2]) * ti.Vector([kick[b, axis, i] for axis in range(self.dim)])
            mass = parameters[b, 2] if i == 0 else masses[i]
            result = self._pull_adjoint(half, kick, masses, b, i, mass, in_lanes, squared) + _bent(r, h, squared)
            result *= parameters[b, 0]
        else:
            squared = self.softening * self.softening
            result = self.gravity * self._pull_adjoint(half, kick, masses, b, i, masses[i], in_lanes, squared)
        return result

    @ti.func
    def _pull(self, half: ti.template(), masses: ti.template(), b, i, in_lanes: ti.template(), squared):
        """Σ_k m_k (x_k - x_i) / d³ with ε² = `squared`."""
        x = ti.Vector([half[b, axis, i] for axis in range(self.dim)])
        result, rest = ti.Vector.zero(float, self.dim), 0
        if ti.static(in_lanes):
            lanes_x, lanes_y = ti.Vector.zero(float, LANES), ti.Vector.zero(float, LANES)
            lanes_z = ti.Vector.zero(float, LANES)
            for block in range(self.bodies // LANES):
                for lane in range(LANES):
                    term = self._attraction(half, masses, b, block * LANES + lane, x, squared)
                    lanes_x[lane] += term[0]
                    lanes_y[lane] += term[1]
                    if ti.static(self.dim == 3):
                        lanes_z[lane] += term[2]
            result[0], result[1] = lanes_x.sum(), lanes_y.sum()
            if ti.static(self.dim == 3):
                result[2] = lanes_z.sum()
            rest = self.bodies // LANES * LANES
        for k in range(rest, self.bodies):
            result += self._attraction(half, masses, b, k, x, squared)
        return result

    @ti.func
    def _attraction(self, half: ti.template(), masses: ti.template(), b, k, x, squared):
        r = ti.Vector([half[b, axis, k] - x[axis] for axis in range(self.dim)])
        inverse = 1.0 / ti.sqrt(r.dot(r) + squared)
        return masses[k] * inverse * inverse * inverse * r

    @ti.func
    def _pull_adjoint(
        self, half: ti.template(), kick: ti.template(), masses: ti.template(), b, i, mass, in_lanes: ti.template(),
        squared,
    ):  # fmt: skip
        """Σ_k H_ik (m_i q̂_k - m_k q̂_i) with m_i = `mass` and ε² = `squared`."""
        x = ti.Vector([half[b, axis, i] for axis in range(self.dim)])
        q = ti.Vector([kick[b, axis, i] for axis in range(self.dim)])
        result, rest = ti.Vector.zero(float, self.dim), 0
        if ti.static(in_lanes):
            lanes_x, lanes_y = ti.Vector.zero(float, LANES), ti.Vector.zero(float, LANES)
            lanes_z = ti.Vector.zero(float, LANES)
            for block in range(self.bodies // LANES):
                for lane in range(LANES):
                    term = self._attraction_pull_back(half, kick, masses, b, block * LANES + lane, x, q, mass, squared)
                    lanes_x[lane] += term[0]
                    lanes_y[lane] += term[1]
                    if ti.static(self.dim == 3):
                        lanes_z[lane] += term[2]
            result[0], result[1] = lanes_x.sum(), lanes_y.sum()
            if ti.static(self.dim == 3):
                result[2] = lanes_z.sum()
            rest = self.bodies // LANES * LANES
        for k in range(rest, self.bodies):
            result += self._attraction_pull_back(half, kick, masses, b, k, x, q, mass, squared)
        return result

    @ti.func
    def _attraction_pull_back(
        self, half: ti.template(), kick: ti.template(), masses: ti.template(), b, k, x, q, mass, squared
    ):
        r = ti.Vector([half[b, axis, k] - x[axis] for axis in range(self.dim)])
        h = ti.Vector([mass * kick[b, axis, k] - masses[k] * q[axis] for axis in range(self.dim)])
        return _bent(r, h, squared)


@ti.func
def _bent(r, h, softening_squared):
    """H h, with H the Jacobian of r/d³."""
    inverse = 1.0 / ti.sqrt(r.dot(r) + softening_squared)
    squared = inverse * inverse
    return squared * inverse * (h - 3.0 * squared * r.dot(h) * r)


def longest_dt(masses: Sequence[float], gravity: float, softening: float) -> float:
    """The time step below which the scheme is stable, about any configuration."""
    pull = gravity * math.fsum(masses)
    return 2.0 * math.sqrt(softening**3 / pull) if pull > 0 else math.inf


def _brief(values: tuple) -> str:
    return str(values) if len(values) <= 8 else f"{len(values)} of them"

"""Bodies that attract each other by softened gravity, some of them with thrusters."""

import math
from collections import namedtuple
from collections.abc import Sequence
from functools import cached_property

import taichi as ti
import torch

from engine import runtime
from engine.checks import finite, is_number, is_whole, not_negative, one_of, positive, several
from engine.errors import SettingError
from engine.launch import prepare
from engine.loops import LANES, Loop, lanes_pay, loop_over
from engine.system import System


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
    Parameters: G, ε and the masses of the bodies, as `gravity`, `softening`, `mass_0`, `mass_1` and so on.

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

    read_by_kernels = ("dim", "bodies", "dt", "gravity", "softening")
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
        masses, thrusters = several("masses of bodies in a tuple", masses), several("bodies in a tuple", thrusters)
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
        self.not_negative_parameters = ("gravity", *(f"mass_{body}" for body in range(self.bodies)))
        self.state_shape, self.control_shape = (2 * dim, self.bodies), (dim, len(thrusters))
        device = runtime.current().device
        self._masses = torch.tensor([masses], dtype=runtime.current().dtype, device=device)
        self._columns = torch.full((self.bodies,), -1, dtype=torch.int32, device=device)
        self._columns[list(thrusters)] = torch.arange(len(thrusters), dtype=torch.int32, device=device)

    @cached_property
    def constants(self) -> tuple:  # type: ignore[override]
        names = ("gravity", "softening", *(f"mass_{body}" for body in range(self.bodies)))
        return namedtuple("NBodyParameters", names)(self.gravity, self.softening, *self.masses)

    def prepare_step(self, state, control, next_state, parameters=None):
        half, _ = self._half_and_kick(state)
        arrays = state, control, self._given(parameters), self._columns, half, next_state
        return prepare(self._step, *arrays, *self._loops(state), parameters is not None)

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None
    ):
        half, kick = self._half_and_kick(state)
        arrays = state, next_adjoint, self._given(parameters), self._columns, half, kick, adjoint, cotangent
        pull_back = prepare(self._pull_back, *arrays, *self._loops(state), parameters is not None)
        if parameter_adjoint is None:
            return pull_back
        arrays = half, kick, parameters, parameter_adjoint
        of_parameters = prepare(self._pull_back_parameters, *arrays, loop_over(len(state)))

        def launch() -> None:
            pull_back()
            of_parameters()

        return launch

    def scratch_bytes(self, batch):
        return 2 * batch * self.dim * self.bodies * runtime.current().dtype.itemsize

    def launch_bytes(self):
        return super().launch_bytes() + 2200

    def _half_and_kick(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where launches put x½ and q̂ [B, dim, N]."""
        shape = len(state), self.dim, self.bodies
        return self.scratch("half", *shape), self.scratch("kick", *shape)

    def _given(self, parameters: torch.Tensor | None) -> torch.Tensor:
        """What kernels read masses from: parameters [B, 2 + N] where they vary, else the masses [1, N]."""
        return self._masses if parameters is None else parameters

    def _loops(self, state: torch.Tensor) -> tuple[Loop, bool]:
        """The loop over the bodies of all samples, and whether sums over bodies run in lanes."""
        return loop_over(len(state), self.bodies, self.bodies), lanes_pay(self.bodies)

    @ti.kernel
    def _step(
        self,
        state: ti.types.ndarray(ndim=3),
        control: ti.types.ndarray(ndim=3),
        given: ti.types.ndarray(ndim=2),
        columns: ti.types.ndarray(ndim=1),
        half: ti.types.ndarray(ndim=3),
        next_state: ti.types.ndarray(ndim=3),
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
            acceleration = self._attracted(half, given, b, i, in_lanes, varied)
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
        given: ti.types.ndarray(ndim=2),
        columns: ti.types.ndarray(ndim=1),
        half: ti.types.ndarray(ndim=3),
        kick: ti.types.ndarray(ndim=3),
        adjoint: ti.types.ndarray(ndim=3),
        cotangent: ti.types.ndarray(ndim=3),
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
            gathered = self._attracted_pull_back(half, kick, given, b, i, in_lanes, varied)
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
        parameters: ti.types.ndarray(ndim=2),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        loop: ti.template(),
    ):
        ti.loop_config(block_dim=loop.block_dim)
        for b in range(loop.count if ti.static(loop.count > 0) else half.shape[0]):
            gravity, softening = parameters[b, 0], parameters[b, 1]
            of_gravity, of_softening = 0.0, 0.0
            for k in range(self.bodies):
                mass, of_mass = parameters[b, 2 + k], 0.0
                y = ti.Vector([half[b, axis, k] for axis in range(self.dim)])
                for i in range(self.bodies):
                    r = ti.Vector([y[axis] - half[b, axis, i] for axis in range(self.dim)])
                    q = self.dt * ti.Vector([kick[b, axis, i] for axis in range(self.dim)])
                    inverse = 1.0 / ti.sqrt(r.dot(r) + softening * softening)
                    work = r.dot(q) * inverse * inverse * inverse
                    of_mass += work
                    of_softening -= 3.0 * gravity * mass * softening * inverse * inverse * work
                of_gravity += mass * of_mass
                parameter_adjoint[b, 2 + k] += gravity * of_mass
            parameter_adjoint[b, 0] += of_gravity
            parameter_adjoint[b, 1] += of_softening

    @ti.func
    def _mass(self, given: ti.template(), b, k, varied: ti.template()):
        return given[b, 2 + k] if ti.static(varied) else given[0, k]

    @ti.func
    def _gravity(self, given: ti.template(), b, varied: ti.template()):
        """G, and ε²."""
        gravity, squared = self.gravity, self.softening * self.softening
        if ti.static(varied):
            gravity, squared = given[b, 0], given[b, 1] * given[b, 1]
        return gravity, squared

    @ti.func
    def _attracted(
        self, half: ti.template(), given: ti.template(), b, i, in_lanes: ti.template(), varied: ti.template()
    ):
        """G Σ_k m_k (x_k - x_i) / d³."""
        gravity, squared = self._gravity(given, b, varied)
        return gravity * self._pull(half, given, b, i, in_lanes, squared, varied)

    @ti.func
    def _attracted_pull_back(
        self,
        half: ti.template(),
        kick: ti.template(),
        given: ti.template(),
        b,
        i,
        in_lanes: ti.template(),
        varied: ti.template(),
    ):
        """G Σ_k H_ik (m_i q̂_k - m_k q̂_i)."""
        gravity, squared = self._gravity(given, b, varied)
        return gravity * self._pull_adjoint(half, kick, given, b, i, in_lanes, squared, varied)

    @ti.func
    def _pull(
        self, half: ti.template(), given: ti.template(), b, i, in_lanes: ti.template(), squared, varied: ti.template()
    ):
        """Σ_k m_k (x_k - x_i) / d³ with ε² = `squared`."""
        x = ti.Vector([half[b, axis, i] for axis in range(self.dim)])
        return self._summed(self._attraction, half, half, given, b, x, x, 0.0, in_lanes, squared, varied)

    @ti.func
    def _pull_adjoint(
        self, half: ti.template(), kick: ti.template(), given: ti.template(), b, i, in_lanes: ti.template(), squared,
        varied: ti.template(),
    ):  # fmt: skip
        """Σ_k H_ik (m_i q̂_k - m_k q̂_i) with ε² = `squared`."""
        mass = self._mass(given, b, i, varied)
        x = ti.Vector([half[b, axis, i] for axis in range(self.dim)])
        q = ti.Vector([kick[b, axis, i] for axis in range(self.dim)])
        return self._summed(self._attraction_pull_back, half, kick, given, b, x, q, mass, in_lanes, squared, varied)

    @ti.func
    def _summed(
        self, term: ti.template(), half: ti.template(), kick: ti.template(), given: ti.template(), b, x, q, mass,
        in_lanes: ti.template(), squared, varied: ti.template(),
    ):  # fmt: skip
        """Σ_k term(k) over all bodies, where x_i = `x`, q̂_i = `q` and m_i = `mass`."""
        result, rest = ti.Vector.zero(float, self.dim), 0
        if ti.static(in_lanes):
            lanes_x, lanes_y = ti.Vector.zero(float, LANES), ti.Vector.zero(float, LANES)
            lanes_z = ti.Vector.zero(float, LANES)
            for block in range(self.bodies // LANES):
                for lane in range(LANES):
                    part = term(half, kick, given, b, block * LANES + lane, x, q, mass, squared, varied)
                    lanes_x[lane] += part[0]
                    lanes_y[lane] += part[1]
                    if ti.static(self.dim == 3):
                        lanes_z[lane] += part[2]
            result[0], result[1] = lanes_x.sum(), lanes_y.sum()
            if ti.static(self.dim == 3):
                result[2] = lanes_z.sum()
            rest = self.bodies // LANES * LANES
        for k in range(rest, self.bodies):
            result += term(half, kick, given, b, k, x, q, mass, squared, varied)
        return result

    @ti.func
    def _attraction(
        self, half: ti.template(), kick: ti.template(), given: ti.template(), b, k, x, q, mass, squared,
        varied: ti.template(),
    ):  # fmt: skip
        r = ti.Vector([half[b, axis, k] - x[axis] for axis in range(self.dim)])
        inverse = 1.0 / ti.sqrt(r.dot(r) + squared)
        return self._mass(given, b, k, varied) * inverse * inverse * inverse * r

    @ti.func
    def _attraction_pull_back(
        self, half: ti.template(), kick: ti.template(), given: ti.template(), b, k, x, q, mass, squared,
        varied: ti.template(),
    ):  # fmt: skip
        r = ti.Vector([half[b, axis, k] - x[axis] for axis in range(self.dim)])
        other = self._mass(given, b, k, varied)
        h = ti.Vector([mass * kick[b, axis, k] - other * q[axis] for axis in range(self.dim)])
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

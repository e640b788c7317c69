"""A quantum particle in a box, steered by a field."""

import math
from typing import NamedTuple

import taichi as ti
import torch

from engine import runtime
from engine.checks import positive, whole
from engine.fused import MOST_COMPONENTS
from engine.launch import prepare
from engine.loops import loop_over
from engine.system import STEP_LAUNCH_BYTES, System

LENGTH = 2.0

# Rows of scratch for each sample, see `QuantumBox._scratch`.
_ROWS = 6


class QuantumParameters(NamedTuple):
    """The physical parameter, one value or one for each sample."""

    slope: float = 1.0


@ti.data_oriented
class QuantumBox(System):
    """i ∂ψ/∂t = H ψ,  H = -∂²/∂x² + u x,  on [0, 2] with ψ = 0 at the walls; u x is u s x with a slope s other than 1.

    N interior points x_j = j dx, dx = 2/(N + 1); the Laplacian by central differences, so that H is tridiagonal with
    2/dx² + u x_j on its diagonal and -1/dx² beside it. Crank-Nicolson, second order in dt and unitary:

        (1 + ½i dt H) ψ' = (1 - ½i dt H) ψ

    computed as ψ' = 2 z - ψ with (1 + ½i dt H) z = ψ, which rounds less than multiplying by H does, and solved by
    elimination along the grid in O(N), without pivots, which a matrix 1 + iH with H real and symmetric never needs.
    With λ as a complex number the adjoint is

        (1 - ½i dt H) w = λ',   λ = 2 w - λ',   ū = ½ dt Σ_j x_j Im(w_j* (ψ_j + ψ'_j))

    At the paper's dt = 0.0625 this is a benchmark rather than the particle: in a step an eigenstate of energy E turns
    by 2 atan(E dt / 2) instead of E dt, by 1.21 instead of 1.38 for n = 3 and 2.17 instead of 3.78 for n = 5, so that
    resonances lie elsewhere. In a field of 3 cos((E_3 - E_2) t), for one, the sum of infidelity over 128 steps is 124
    where it is 93 by exact propagation; `evenflow check` computes both. A smaller dt comes nearer, by its square.

    State [2, N]: rows Re ψ, Im ψ. Control [1]: u, the strength of the field. Parameter: s, as `slope`.
    Units with ħ = 1 and mass ½.

    Source: Schnell and Thuerey (ICLR 2024), Sec. 3.3.

    Args:
        points: N, at least 2.
        dt: time step; by default the paper's.
    """

    read_by_kernels = ("points", "dt", "dx", "_half", "_centre", "_beside")

    def __init__(self, points: int = 32, dt: float = 0.0625):
        points, dt = whole("quantum with at least 2 points", points, 2), positive("a time step dt above 0", dt)
        self.name = "quantum"
        self.points, self.dt = points, dt
        self.state_shape, self.control_shape = (2, points), (1,)
        self.constants = QuantumParameters()
        self.dx = LENGTH / (points + 1)
        self._half = 0.5 * dt
        self._centre, self._beside = 2.0 / self.dx**2, -1.0 / self.dx**2
        self._shared: torch.Tensor | None = None

    def eigenstate(self, n: int) -> torch.Tensor:
        """The n-th eigenstate of H at u = 0, n from 1: sin(π n j / (N + 1)), of norm 1; [N], float64."""
        n = whole(f"an eigenstate from 1 to {self.points}", n, most=self.points)
        values = torch.sin(math.pi * n * torch.arange(1, self.points + 1, dtype=torch.float64) / (self.points + 1))
        return values / values.norm()

    def prepare_step(self, state, control, next_state, parameters=None):
        arrays = state, control, next_state, self._scratch(state), self.rows_or_none(parameters)
        return prepare(self._step, *arrays, loop_over(len(state)), parameters is not None)

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None
    ):
        arrays = state, control, next_adjoint, adjoint, cotangent, self._scratch(state)
        rows = self.rows_or_none(parameters), self.rows_or_none(parameter_adjoint)
        asked = parameters is not None, parameter_adjoint is not None
        return prepare(self._pull_back, *arrays, *rows, loop_over(len(state)), *asked)

    def prepare_sweep(self, arrays):
        if arrays.disturbed:  # ψ' is taken from the next state
            return None
        rows = self.rows_or_none(arrays.parameters), self.rows_or_none(arrays.parameter_adjoint)
        asked = arrays.parameters is not None, arrays.parameter_adjoint is not None
        return arrays.prepare(self._sweep, self._scratch(arrays.states[0]), *rows, *asked)

    def advances_in_kernel(self):
        own = getattr(self.prepare_step, "__func__", None) is QuantumBox.prepare_step
        return own and 2 * self.points <= MOST_COMPONENTS

    @ti.func
    def advance_at(
        self, states: ti.template(), controls: ti.template(), t, b, parameters: ti.template(), varied: ti.template()
    ):
        """As `_solve` and `_step` do it, with what is eliminated in a vector and the solution in the next state."""
        u, e = self._slope(parameters, b, varied) * controls[t, b, 0], ti.static(self._half * self._beside)
        factors = ti.Vector.zero(float, ti.static(2 * self.points))
        c_re, c_im, y_re, y_im = 0.0, 0.0, 0.0, 0.0
        for j in range(self.points):
            d = self._half * (self._centre + u * self.dx * (j + 1))
            m_re, m_im = 1.0 + e * c_im, d - e * c_re
            inverse = 1.0 / (m_re * m_re + m_im * m_im)
            r_re, r_im = states[t, b, 0, j] + e * y_im, states[t, b, 1, j] - e * y_re
            c_re, c_im = e * m_im * inverse, e * m_re * inverse
            y_re, y_im = (r_re * m_re + r_im * m_im) * inverse, (r_im * m_re - r_re * m_im) * inverse
            factors[2 * j], factors[2 * j + 1] = c_re, c_im
            states[t + 1, b, 0, j], states[t + 1, b, 1, j] = y_re, y_im
        z_re, z_im = 0.0, 0.0
        for back in range(self.points):
            j = self.points - 1 - back
            c_re, c_im = factors[2 * j], factors[2 * j + 1]
            y_re, y_im = states[t + 1, b, 0, j], states[t + 1, b, 1, j]
            z_re, z_im = y_re - c_re * z_re + c_im * z_im, y_im - c_re * z_im - c_im * z_re
            states[t + 1, b, 0, j] = 2.0 * z_re - states[t, b, 0, j]
            states[t + 1, b, 1, j] = 2.0 * z_im - states[t, b, 1, j]

    def scratch_bytes(self, batch):
        return batch * _ROWS * self.points * runtime.current().dtype.itemsize

    def launch_bytes(self):
        return STEP_LAUNCH_BYTES + 1100

    def counts_pull_backs(self):
        return False

    def _scratch(self, state: torch.Tensor) -> torch.Tensor:
        """[B, 6, N]: elimination factors, right-hand side and then solution, ½(ψ + ψ'); Re and Im of each.

        Launches run one after another, so all share one buffer, as large as the largest batch needs.
        """
        if self._shared is None or len(self._shared) < len(state):
            with torch.inference_mode(False):
                self._shared = state.new_zeros(len(state), _ROWS, self.points)
        return self._shared[: len(state)]

    @ti.kernel
    def _step(
        self,
        state: ti.types.ndarray(ndim=3),
        control: ti.types.ndarray(ndim=2),
        next_state: ti.types.ndarray(ndim=3),
        scratch: ti.types.ndarray(ndim=3),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        varied: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b in range(loop.count if ti.static(loop.count > 0) else state.shape[0]):
            self._load(state, scratch, b)
            self._solve(scratch, b, self._slope(parameters, b, varied) * control[b, 0], 1.0)
            for j in range(self.points):
                next_state[b, 0, j] = 2.0 * scratch[b, 2, j] - state[b, 0, j]
                next_state[b, 1, j] = 2.0 * scratch[b, 3, j] - state[b, 1, j]

    @ti.kernel
    def _pull_back(
        self,
        state: ti.types.ndarray(ndim=3),
        control: ti.types.ndarray(ndim=2),
        next_adjoint: ti.types.ndarray(ndim=3),
        adjoint: ti.types.ndarray(ndim=3),
        cotangent: ti.types.ndarray(ndim=2),
        scratch: ti.types.ndarray(ndim=3),
        parameters: ti.types.ndarray(ndim=2),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        varied: ti.template(),
        asked: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b in range(loop.count if ti.static(loop.count > 0) else state.shape[0]):
            slope = self._slope(parameters, b, varied)
            u = slope * control[b, 0]
            self._load(state, scratch, b)
            self._solve(scratch, b, u, 1.0)
            for j in range(self.points):
                scratch[b, 4, j], scratch[b, 5, j] = scratch[b, 2, j], scratch[b, 3, j]
            self._load(next_adjoint, scratch, b)
            self._solve(scratch, b, u, -1.0)
            pulled = 0.0
            for j in range(self.points):
                re, im = scratch[b, 2, j], scratch[b, 3, j]
                pulled += (j + 1) * (re * scratch[b, 5, j] - im * scratch[b, 4, j])
                adjoint[b, 0, j] = 2.0 * re - next_adjoint[b, 0, j]
                adjoint[b, 1, j] = 2.0 * im - next_adjoint[b, 1, j]
            cotangent[b, 0] += slope * (self.dt * self.dx * pulled)
            if ti.static(asked):
                parameter_adjoint[b, 0] += control[b, 0] * (self.dt * self.dx * pulled)

    @ti.kernel
    def _sweep(
        self,
        states: ti.types.ndarray(ndim=4),
        controls: ti.types.ndarray(ndim=3),
        direct: ti.types.ndarray(ndim=4),
        jacobian: ti.types.ndarray(ndim=4),
        adjoints: ti.types.ndarray(ndim=4),
        cotangents: ti.types.ndarray(ndim=3),
        first: int, last: int, start: ti.types.ndarray(dtype=ti.i32, ndim=1),
        physics_weight: float, policy_weight: float,
        loop: ti.template(),
        law: ti.template(),
        scratch: ti.types.ndarray(ndim=3),
        parameters: ti.types.ndarray(ndim=2),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        varied: ti.template(),
        asked: ti.template(),
    ):  # fmt: skip
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for sample in range(loop.count if ti.static(loop.count > 0) else last - first):
            b = first + sample
            steps, slope = controls.shape[0], self._slope(parameters, b, varied)
            for back in range(steps):
                t = steps - 1 - back
                for j in range(self.points):
                    scratch[b, 2, j], scratch[b, 3, j] = adjoints[t + 1, b, 0, j], adjoints[t + 1, b, 1, j]
                self._solve(scratch, b, slope * controls[t, b, 0], -1.0)
                pulled = 0.0
                for j in range(self.points):
                    re = states[t, b, 0, j] + states[t + 1, b, 0, j]
                    im = states[t, b, 1, j] + states[t + 1, b, 1, j]
                    pulled += (j + 1) * (scratch[b, 2, j] * im - scratch[b, 3, j] * re)
                cotangent = cotangents[t, b, 0] + slope * (self._half * self.dx * pulled)
                cotangents[t, b, 0] = cotangent
                if ti.static(asked):
                    parameter_adjoint[b, 0] += controls[t, b, 0] * (self._half * self.dx * pulled)
                if ti.static(law.sums_paths):
                    for j in range(self.points):
                        for row in ti.static(range(2)):
                            value = direct[t, b, row, j]
                            if ti.static(law.uses_physics):
                                value += physics_weight * (2.0 * scratch[b, 2 + row, j] - adjoints[t + 1, b, row, j])
                            if ti.static(law.uses_policy):
                                value += policy_weight * jacobian[t, b, 0, row * self.points + j] * cotangent
                            adjoints[t, b, row, j] = value
                else:
                    self._apply(law, direct, jacobian, adjoints, scratch, start[0] + t, t, b, cotangent)

    @ti.func
    def _apply(
        self,
        law: ti.template(),
        direct: ti.template(),
        jacobian: ti.template(),
        adjoints: ti.template(),
        scratch: ti.template(),
        time,
        t,
        b,
        cotangent,
    ):
        """λ_t of sample b by the rule of a law, from vectors of both rows, one after the other."""
        given = ti.Vector.zero(float, 2 * self.points)
        physics = ti.Vector.zero(float, 2 * self.points)
        policy = ti.Vector.zero(float, 2 * self.points)
        for j in range(self.points):
            for row in ti.static(range(2)):
                place = row * self.points + j
                given[place] = direct[t, b, row, j]
                physics[place] = 2.0 * scratch[b, 2 + row, j] - adjoints[t + 1, b, row, j]
                if ti.static(law.uses_policy):
                    policy[place] = jacobian[t, b, 0, place] * cotangent
        adjoint = law.rule.on_sample(given, physics, policy, time)
        for j in range(self.points):
            adjoints[t, b, 0, j] = adjoint[j]
            adjoints[t, b, 1, j] = adjoint[self.points + j]

    @ti.func
    def _slope(self, parameters: ti.template(), b, varied: ti.template()):
        """s of sample b."""
        result = 1.0
        if ti.static(varied):
            result = parameters[b, 0]
        return result

    @ti.func
    def _load(self, values: ti.template(), scratch: ti.template(), b):
        """Make the rows of sample b the right-hand side."""
        for j in range(self.points):
            scratch[b, 2, j], scratch[b, 3, j] = values[b, 0, j], values[b, 1, j]

    @ti.func
    def _solve(self, scratch: ti.template(), b, u, sign):
        """Solve (1 + sign ½i dt H) z = r in place, r and z in rows 2 and 3."""
        e = sign * self._half * self._beside  # i e stands beside the diagonal 1 + i d
        c_re, c_im, y_re, y_im = 0.0, 0.0, 0.0, 0.0
        for j in range(self.points):
            d = sign * self._half * (self._centre + u * self.dx * (j + 1))
            m_re, m_im = 1.0 + e * c_im, d - e * c_re
            inverse = 1.0 / (m_re * m_re + m_im * m_im)
            r_re, r_im = scratch[b, 2, j] + e * y_im, scratch[b, 3, j] - e * y_re
            c_re, c_im = e * m_im * inverse, e * m_re * inverse
            y_re, y_im = (r_re * m_re + r_im * m_im) * inverse, (r_im * m_re - r_re * m_im) * inverse
            scratch[b, 0, j], scratch[b, 1, j] = c_re, c_im
            scratch[b, 2, j], scratch[b, 3, j] = y_re, y_im
        for back in range(1, self.points):
            j = self.points - 1 - back
            c_re, c_im = scratch[b, 0, j], scratch[b, 1, j]
            z_re = scratch[b, 2, j] - c_re * y_re + c_im * y_im
            z_im = scratch[b, 3, j] - c_re * y_im - c_im * y_re
            scratch[b, 2, j], scratch[b, 3, j] = z_re, z_im
            y_re, y_im = z_re, z_im

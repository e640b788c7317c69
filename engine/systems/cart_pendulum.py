"""A chain of rods hinged on a cart, the n-link pendulum, pushed at the cart."""

from typing import NamedTuple

import taichi as ti

from engine.checks import positive, whole
from engine.parameters import acts, varies, with_values
from engine.vector_system import VECTOR, VectorSystem

# What is unrolled in the kernels grows with the cube of the number of links.
_MOST_LINKS = 4


class CartPendulumParameters(NamedTuple):
    """Physical parameters, one value or one for each sample."""

    gravity: float = 9.8
    cart_mass: float = 1.0
    link_mass: float = 0.1
    half_length: float = 0.5
    friction: float = 0.0

    @property
    def moments(self):
        """h_k of rods with 0, 1, ... rods beyond them."""
        return tuple(self.link_mass * self.half_length * (1 + 2 * beyond) for beyond in range(_MOST_LINKS))

    @property
    def inertias(self):
        """H_kk of the same."""
        return tuple(self.link_mass * self.half_length**2 * (4 / 3 + 4 * beyond) for beyond in range(_MOST_LINKS))

    @property
    def couplings(self):
        """H_kj with any rod before them."""
        return tuple(2 * self.half_length * moment for moment in self.moments)


class CartPendulum(VectorSystem):
    """n uniform rods in a serial chain, the first hinged on a cart that a force F pushes along a level line.

        M(q) q̈ = f(q, q̇, F),   q = (x, θ_1, ..., θ_n)
        M_00 = m_c + n m,   M_0k = h_k cosθ_k,   M_kj = H_kj cos(θ_k - θ_j)
        f_0  = F - c ẋ + Σ_k h_k sinθ_k θ̇_k²
        f_k  = g h_k sinθ_k - Σ_j H_kj sin(θ_k - θ_j) θ̇_j²
        h_k  = m (l + 2l (n - k)),   H_kk = m (4/3 l² + 4l² (n - k)),   H_kj = 2l h_max(k,j)   for k ≠ j

    These are Lagrange's equations; θ_k is the angle of rod k from the upward vertical, 0 upright, not relative to the
    rod before it. g = `gravity` = 9.8 m/s². Masses and lengths are those of the cart-pole: cart m_c = `cart_mass` =
    1 kg; each rod m = `link_mass` = 0.1 kg, uniform, of half length l = `half_length` = 0.5 m, so that one link is the
    cart-pole with one pole; c = `friction` = 0 kg/s, viscous, between cart and line. M is factored as L D Lᵀ (Cholesky
    without roots) at every stage.

    Classical Runge-Kutta method with constant force over a step; fourth order, in which it conserves the energy of
    free motion. Its adjoint is the exact one of the discrete step: the stages in reverse, each with one solve by M.

    State [2 + 2n]: x (m), ẋ (m/s), θ_1..θ_n (rad), θ̇_1..θ̇_n (rad/s). Control [1]: F (N).
    Parameters: those five.

    Source: Lagrange's equations of the second kind, derived for this file; the adjoint of M a = f is M p = ā,
    f̄ = p, M̄ = -p aᵀ.

    Args:
        links: n, 1 to 4.
        dt: time step in seconds.
        parameters: values other than these, by name.
    """

    read_by_kernels = (*VECTOR, "links", "dt")
    positive_parameters = ("cart_mass", "link_mass", "half_length")

    def __init__(self, links: int = 2, dt: float = 0.01, **parameters: float):
        links = whole(f"cart-pendulum with 1 to {_MOST_LINKS} links", links, most=_MOST_LINKS)
        self.name = "cart-pendulum"
        self.links, self.dt = links, positive("a time step dt above 0 s", dt)
        self.step_seconds = self.dt
        self.state_shape, self.control_shape = (2 + 2 * links,), (1,)
        self.constants = with_values(self, CartPendulumParameters(), parameters)

    @ti.func
    def advance(self, state, control, p: ti.template()):
        # Small terms are summed among themselves: one rounding at the size of the state instead of four.
        increment, slope = ti.Vector.zero(float, 2 + 2 * self.links), ti.Vector.zero(float, 2 + 2 * self.links)
        for stage in range(4):
            slope = self._slope(state + self._reach(stage) * slope, control[0], p)
            increment += self._weight(stage) * slope
        return state + increment

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint, p: ti.template()):
        slopes = ti.Matrix.zero(float, 4, 2 + 2 * self.links)
        slope = ti.Vector.zero(float, 2 + 2 * self.links)
        for stage in range(4):
            slope = self._slope(state + self._reach(stage) * slope, control[0], p)
            for i in ti.static(range(2 + 2 * self.links)):
                slopes[stage, i] = slope[i]
        increment, force_bar = ti.Vector.zero(float, 2 + 2 * self.links), 0.0
        stage_bar, parameters_bar = ti.Vector.zero(float, 2 + 2 * self.links), ti.Vector.zero(float, 5)
        for back in range(4):
            stage = 3 - back
            # The next stage starts at state + reach·slope; there is none after the last, whose stage_bar is 0.
            slope_bar = self._weight(stage) * next_adjoint + self._reach(stage + 1) * stage_bar
            before = ti.Vector.zero(float, 2 + 2 * self.links)
            for i in ti.static(range(2 + 2 * self.links)):
                slope[i] = slopes[stage, i]
                if stage > 0:
                    before[i] = slopes[stage - 1, i]
            at = state + self._reach(stage) * before
            stage_bar, push = self._slope_pull_back(at, slope, slope_bar, p)
            increment += stage_bar
            force_bar += push
            if ti.static(varies(p)):
                parameters_bar += self._parameters_pull_back(at, slope, slope_bar, p)
        return next_adjoint + increment, ti.Vector([force_bar]), parameters_bar

    @ti.func
    def _reach(self, stage):
        """How far a stage goes along the slope of the one before."""
        return ti.select(stage == 3, self.dt, 0.5 * self.dt)

    @ti.func
    def _weight(self, stage):
        return ti.select(stage % 3 == 0, self.dt / 6.0, self.dt / 3.0)

    @ti.func
    def _slope(self, state, force, p: ti.template()):
        """d/dt of the state."""
        n = ti.static(self.links)
        sin, cos = ti.sin(state[2 : 2 + n]), ti.cos(state[2 : 2 + n])
        loads = ti.Vector.zero(float, n + 1)
        loads[0] = force
        if ti.static(acts(p.friction)):
            loads[0] -= p.friction * state[1]
        for k in ti.static(range(n)):
            spin = state[2 + n + k] * state[2 + n + k]
            loads[0] += p.moments[n - 1 - k] * sin[k] * spin
            loads[1 + k] += p.gravity * p.moments[n - 1 - k] * sin[k]
            for j in ti.static(range(n)):
                if ti.static(j != k):
                    loads[1 + j] -= (
                        p.couplings[ti.static(n - 1 - max(j, k))] * (sin[j] * cos[k] - cos[j] * sin[k]) * spin
                    )
        accelerations = self._solve(self._factor(sin, cos, p), loads)
        result = ti.Vector.zero(float, 2 + 2 * n)
        result[0], result[1] = state[1], accelerations[0]
        for k in ti.static(range(n)):
            result[2 + k], result[2 + n + k] = state[2 + n + k], accelerations[1 + k]
        return result

    @ti.func
    def _slope_pull_back(self, state, slope, slope_bar, p: ti.template()):
        """What `slope_bar` passes to the state and to the force through `_slope`."""
        n = ti.static(self.links)
        sin, cos, a, q = self._at_stage(state, slope, slope_bar, p)
        result = ti.Vector.zero(float, 2 + 2 * n)
        result[1] = slope_bar[0]
        if ti.static(acts(p.friction)):
            result[1] -= p.friction * q[0]
        # Derivatives of qᵀ(f - M a) at fixed q and a.
        for k in ti.static(range(n)):
            rate = state[2 + n + k]
            angle_bar = p.moments[n - 1 - k] * cos[k] * (q[0] * rate * rate + p.gravity * q[1 + k])
            angle_bar += p.moments[n - 1 - k] * sin[k] * (q[0] * a[1 + k] + q[1 + k] * a[0])
            spin_bar = p.moments[n - 1 - k] * q[0] * sin[k]
            for j in ti.static(range(n)):
                if ti.static(j != k):
                    other = state[2 + n + j]
                    sine = p.couplings[ti.static(n - 1 - max(j, k))] * (sin[k] * cos[j] - cos[k] * sin[j])
                    cosine = p.couplings[ti.static(n - 1 - max(j, k))] * (cos[k] * cos[j] + sin[k] * sin[j])
                    angle_bar += cosine * (q[1 + j] * rate * rate - q[1 + k] * other * other)
                    angle_bar += sine * (q[1 + k] * a[1 + j] + q[1 + j] * a[1 + k])
                    spin_bar += sine * q[1 + j]
            result[2 + k] = angle_bar
            result[2 + n + k] = slope_bar[2 + k] + 2.0 * rate * spin_bar
        return result, q[0]

    @ti.func
    def _parameters_pull_back(self, state, slope, slope_bar, p: ti.template()):
        """What `slope_bar` passes to the parameters through `_slope`: derivatives of qᵀ(f - M a) at fixed q and a."""
        n = ti.static(self.links)
        sin, cos, a, q = self._at_stage(state, slope, slope_bar, p)
        falling, moments, inertias = 0.0, 0.0, 0.0  # the terms of g h, h and H; h grows with m l, H with m l²
        for k in ti.static(range(n)):
            moment = p.moments[n - 1 - k]
            spin = state[2 + n + k] * state[2 + n + k]
            falling += moment * sin[k] * q[1 + k]
            moments += moment * (sin[k] * spin * q[0] - cos[k] * (q[0] * a[1 + k] + q[1 + k] * a[0]))
            inertias -= p.inertias[n - 1 - k] * q[1 + k] * a[1 + k]
            for j in ti.static(range(n)):
                if ti.static(j != k):
                    sine, cosine = sin[j] * cos[k] - cos[j] * sin[k], cos[j] * cos[k] + sin[j] * sin[k]
                    inertias -= p.couplings[ti.static(n - 1 - max(j, k))] * q[1 + j] * (sine * spin + cosine * a[1 + k])
        moments += p.gravity * falling
        direct = q[0] * a[0]
        return ti.Vector([
            falling,
            -direct,
            (moments + inertias) / p.link_mass - n * direct,
            (moments + 2.0 * inertias) / p.half_length,
            -q[0] * state[1],
        ])  # fmt: skip

    @ti.func
    def _at_stage(self, state, slope, slope_bar, p: ti.template()):
        """sinθ, cosθ, the accelerations a = q̈, and q = M⁻¹ ā, through which `slope_bar` acts."""
        n = ti.static(self.links)
        sin, cos = ti.sin(state[2 : 2 + n]), ti.cos(state[2 : 2 + n])
        a, q = ti.Vector.zero(float, n + 1), ti.Vector.zero(float, n + 1)
        a[0], q[0] = slope[1], slope_bar[1]
        for k in ti.static(range(n)):
            a[1 + k], q[1 + k] = slope[2 + n + k], slope_bar[2 + n + k]
        return sin, cos, a, self._solve(self._factor(sin, cos, p), q)

    @ti.func
    def _factor(self, sin, cos, p: ti.template()):
        """M = L D Lᵀ in one matrix: L below the diagonal, 1/D on it, D Lᵀ above."""
        size = ti.static(self.links + 1)
        factor = ti.Matrix.zero(float, size, size)
        for j in ti.static(range(size)):
            for i in ti.static(range(j, size)):
                entry = self._mass(sin, cos, p, i, j)
                for k in ti.static(range(j)):
                    entry -= factor[i, k] * factor[k, j]
                if ti.static(i == j):
                    factor[j, j] = 1.0 / entry
                else:
                    factor[j, i] = entry
                    factor[i, j] = entry * factor[j, j]
        return factor

    @ti.func
    def _mass(self, sin, cos, p: ti.template(), i: ti.template(), j: ti.template()):
        """M_ij for i >= j."""
        result = p.cart_mass + self.links * p.link_mass
        if ti.static(i > 0 and j == 0):
            result = p.moments[self.links - i] * cos[i - 1]
        elif ti.static(i > 0 and i == j):
            result = p.inertias[self.links - i] * (cos[i - 1] * cos[i - 1] + sin[i - 1] * sin[i - 1])
        elif ti.static(i > 0):
            result = p.couplings[self.links - i] * (cos[i - 1] * cos[j - 1] + sin[i - 1] * sin[j - 1])
        return result

    @ti.func
    def _solve(self, factor, right):
        """M⁻¹ right."""
        size = ti.static(self.links + 1)
        result = right
        for i in ti.static(range(size)):
            for k in ti.static(range(i)):
                result[i] -= factor[i, k] * result[k]
        for back in ti.static(range(size)):
            i = ti.static(size - 1 - back)
            result[i] *= factor[i, i]
            for k in ti.static(range(i + 1, size)):
                result[i] -= factor[k, i] * result[k]
        return result

"""A chain of rods hinged on a cart, the n-link pendulum, pushed at the cart."""

import taichi as ti

from engine.checks import positive, whole
from engine.vector_system import VectorSystem

GRAVITY = 9.8
CART_MASS = 1.0
LINK_MASS = 0.1
HALF_LENGTH = 0.5

# What is unrolled in the kernels grows with the cube of the number of links.
_MOST_LINKS = 4


class CartPendulum(VectorSystem):
    """n uniform rods in a serial chain, the first hinged on a cart that a force F pushes along a level line.

        M(q) q̈ = f(q, q̇, F),   q = (x, θ_1, ..., θ_n)
        M_00 = m_c + n m,   M_0k = h_k cosθ_k,   M_kj = H_kj cos(θ_k - θ_j)
        f_0  = F + Σ_k h_k sinθ_k θ̇_k²
        f_k  = g h_k sinθ_k - Σ_j H_kj sin(θ_k - θ_j) θ̇_j²
        h_k  = m (l + 2l (n - k)),   H_kk = m (4/3 l² + 4l² (n - k)),   H_kj = 2l h_max(k,j)   for k ≠ j

    These are Lagrange's equations without friction; θ_k is the angle of rod k from the upward vertical, 0 upright,
    not relative to the rod before it. g = `GRAVITY` = 9.8 m/s². Masses and lengths are those of the cart-pole: cart
    m_c = `CART_MASS` = 1 kg; each rod m = `LINK_MASS` = 0.1 kg, uniform, of half length l = `HALF_LENGTH` = 0.5 m, so
    that one link is the cart-pole with one pole. M is factored as L D Lᵀ (Cholesky without roots) at every stage.

    Classical Runge-Kutta method with constant force over a step; fourth order, in which it conserves the energy of
    free motion. Its adjoint is the exact one of the discrete step: the stages in reverse, each with one solve by M.

    State [2 + 2n]: x (m), ẋ (m/s), θ_1..θ_n (rad), θ̇_1..θ̇_n (rad/s). Control [1]: F (N).

    Source: Lagrange's equations of the second kind, derived for this file; the adjoint of M a = f is M p = ā,
    f̄ = p, M̄ = -p aᵀ.

    Args:
        links: n, 1 to 4.
        dt: time step in seconds.
    """

    def __init__(self, links: int = 2, dt: float = 0.01):
        links = whole(f"cart-pendulum with 1 to {_MOST_LINKS} links", links, most=_MOST_LINKS)
        self.name = "cart-pendulum"
        self.links, self.dt = links, positive("a time step dt above 0 s", dt)
        self.step_seconds = self.dt
        self.state_shape, self.control_shape = (2 + 2 * links,), (1,)
        beyond = [links - 1 - k for k in range(links)]
        self._h = tuple(LINK_MASS * HALF_LENGTH * (1 + 2 * count) for count in beyond)
        self._H = tuple(
            tuple(
                LINK_MASS * HALF_LENGTH**2 * (4 / 3 + 4 * beyond[k]) if k == j else 2 * HALF_LENGTH * self._h[max(k, j)]
                for j in range(links)
            )
            for k in range(links)
        )

    @ti.func
    def advance(self, state, control):
        # Small terms are summed among themselves: one rounding at the size of the state instead of four.
        increment, slope = ti.Vector.zero(float, 2 + 2 * self.links), ti.Vector.zero(float, 2 + 2 * self.links)
        for stage in range(4):
            slope = self._slope(state + self._reach(stage) * slope, control[0])
            increment += self._weight(stage) * slope
        return state + increment

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        slopes = ti.Matrix.zero(float, 4, 2 + 2 * self.links)
        slope = ti.Vector.zero(float, 2 + 2 * self.links)
        for stage in range(4):
            slope = self._slope(state + self._reach(stage) * slope, control[0])
            for i in ti.static(range(2 + 2 * self.links)):
                slopes[stage, i] = slope[i]
        increment, force_bar = ti.Vector.zero(float, 2 + 2 * self.links), 0.0
        stage_bar = ti.Vector.zero(float, 2 + 2 * self.links)
        for back in range(4):
            stage = 3 - back
            # The next stage starts at state + reach·slope; there is none after the last, whose stage_bar is 0.
            slope_bar = self._weight(stage) * next_adjoint + self._reach(stage + 1) * stage_bar
            before = ti.Vector.zero(float, 2 + 2 * self.links)
            for i in ti.static(range(2 + 2 * self.links)):
                slope[i] = slopes[stage, i]
                if stage > 0:
                    before[i] = slopes[stage - 1, i]
            stage_bar, push = self._slope_pull_back(state + self._reach(stage) * before, slope, slope_bar)
            increment += stage_bar
            force_bar += push
        return next_adjoint + increment, ti.Vector([force_bar])

    @ti.func
    def _reach(self, stage):
        """How far a stage goes along the slope of the one before."""
        return ti.select(stage == 3, self.dt, 0.5 * self.dt)

    @ti.func
    def _weight(self, stage):
        return ti.select(stage % 3 == 0, self.dt / 6.0, self.dt / 3.0)

    @ti.func
    def _slope(self, state, force):
        """d/dt of the state."""
        n = ti.static(self.links)
        sin, cos = ti.sin(state[2 : 2 + n]), ti.cos(state[2 : 2 + n])
        loads = ti.Vector.zero(float, n + 1)
        loads[0] = force
        for k in ti.static(range(n)):
            spin = state[2 + n + k] * state[2 + n + k]
            loads[0] += self._h[k] * sin[k] * spin
            loads[1 + k] += GRAVITY * self._h[k] * sin[k]
            for j in ti.static(range(n)):
                if ti.static(j != k):
                    loads[1 + j] -= self._H[j][k] * (sin[j] * cos[k] - cos[j] * sin[k]) * spin
        accelerations = self._solve(self._factor(sin, cos), loads)
        result = ti.Vector.zero(float, 2 + 2 * n)
        result[0], result[1] = state[1], accelerations[0]
        for k in ti.static(range(n)):
            result[2 + k], result[2 + n + k] = state[2 + n + k], accelerations[1 + k]
        return result

    @ti.func
    def _slope_pull_back(self, state, slope, slope_bar):
        """What `slope_bar` passes to the state and to the force through `_slope`."""
        n = ti.static(self.links)
        sin, cos = ti.sin(state[2 : 2 + n]), ti.cos(state[2 : 2 + n])
        a, p = ti.Vector.zero(float, n + 1), ti.Vector.zero(float, n + 1)
        a[0], p[0] = slope[1], slope_bar[1]
        for k in ti.static(range(n)):
            a[1 + k], p[1 + k] = slope[2 + n + k], slope_bar[2 + n + k]
        p = self._solve(self._factor(sin, cos), p)
        result = ti.Vector.zero(float, 2 + 2 * n)
        result[1] = slope_bar[0]
        # Derivatives of pᵀ(f - M a) at fixed p and a.
        for k in ti.static(range(n)):
            rate = state[2 + n + k]
            angle_bar = self._h[k] * cos[k] * (p[0] * rate * rate + GRAVITY * p[1 + k])
            angle_bar += self._h[k] * sin[k] * (p[0] * a[1 + k] + p[1 + k] * a[0])
            spin_bar = self._h[k] * p[0] * sin[k]
            for j in ti.static(range(n)):
                if ti.static(j != k):
                    other = state[2 + n + j]
                    sine = self._H[k][j] * (sin[k] * cos[j] - cos[k] * sin[j])
                    cosine = self._H[k][j] * (cos[k] * cos[j] + sin[k] * sin[j])
                    angle_bar += cosine * (p[1 + j] * rate * rate - p[1 + k] * other * other)
                    angle_bar += sine * (p[1 + k] * a[1 + j] + p[1 + j] * a[1 + k])
                    spin_bar += sine * p[1 + j]
            result[2 + k] = angle_bar
            result[2 + n + k] = slope_bar[2 + k] + 2.0 * rate * spin_bar
        return result, p[0]

    @ti.func
    def _factor(self, sin, cos):
        """M = L D Lᵀ in one matrix: L below the diagonal, 1/D on it, D Lᵀ above."""
        size = ti.static(self.links + 1)
        factor = ti.Matrix.zero(float, size, size)
        for j in ti.static(range(size)):
            for i in ti.static(range(j, size)):
                entry = self._mass(sin, cos, i, j)
                for k in ti.static(range(j)):
                    entry -= factor[i, k] * factor[k, j]
                if ti.static(i == j):
                    factor[j, j] = 1.0 / entry
                else:
                    factor[j, i] = entry
                    factor[i, j] = entry * factor[j, j]
        return factor

    @ti.func
    def _mass(self, sin, cos, i: ti.template(), j: ti.template()):
        """M_ij for i >= j."""
        result = CART_MASS + self.links * LINK_MASS
        if ti.static(i > 0 and j == 0):
            result = self._h[i - 1] * cos[i - 1]
        elif ti.static(i > 0):
            result = self._H[i - 1][j - 1] * (cos[i - 1] * cos[j - 1] + sin[i - 1] * sin[j - 1])
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

"""A one-legged hopper in the plane, on soft ground with friction."""

import taichi as ti

from engine.checks import not_negative, positive
from engine.vector_system import VECTOR, VectorSystem

GRAVITY = 9.8
BODY_MASS, FOOT_MASS, INERTIA = 1.0, 0.1, 0.02
LEG_LENGTH = 0.5
TORQUE, THRUST = 2.0, 20.0
# Below any length that matters: gives the leg a direction when the foot is in the hip.
_TINY = 1e-9


class Hopper(VectorSystem):
    """A body whose hip, at its centre of mass, turns and pushes a leg that ends in a foot.

    With d = foot - body, ℓ = |d|, n = d/ℓ, t = n turned by 90° to the left, w = velocity of the foot - that of the
    body, τ = 2 tanh u_1 (N m) and

        F = k (ℓ₀ - ℓ) - c n·w + 20 tanh u_2     along the leg, N
        s = ε ln(1 + exp(-q/ε))                   how deep the foot is, smoothly: 0 above ground, -q below, m
        N = κ s (1 - tanh(q̇ / 0.5))               of the ground on the foot, upward; more as it sinks than as it rises
        T = -μ N tanh(ṗ / 0.1)                    along the ground

        M (ẍ, ÿ) = -F n - τ/ℓ t - (0, M g)        J φ̈ = -τ
        m (p̈, q̈) =  F n + τ/ℓ t + (T, N) - (0, m g)

    M = 1 kg, m = 0.1 kg, J = 0.02 kg m², ℓ₀ = 0.5 m, g = 9.8 m/s². Contact is by penalty: with κ = 5000 N/m a standing
    hopper sinks 2 mm, ε = 2 mm blurs the ground, and no state jumps. Semi-implicit Euler: velocities first, then
    positions with the new velocities; first order, stable for dt below about 5 ms at this stiffness.

    State [10]: body x, y (m), pitch φ (rad), foot p, q (m), then the velocities of the five. Control [2]: u_1 for the
    hip's torque, u_2 for the leg's thrust, bounded as above.

    Args:
        dt: time step in seconds.
        stiffness: κ of the ground, N/m; softness: ε, m; friction: μ.
        spring: k of the leg, N/m; damping: c of the leg, N s/m.
    """

    read_by_kernels = (*VECTOR, "dt", "stiffness", "softness", "friction", "spring", "damping")

    def __init__(
        self,
        dt: float = 0.002,
        stiffness: float = 5000.0,
        softness: float = 0.002,
        friction: float = 0.8,
        spring: float = 400.0,
        damping: float = 4.0,
    ):
        for name, value in (("time step dt", dt), ("stiffness", stiffness), ("softness", softness)):
            positive(f"a finite {name} above 0", value)
        for name, value in (("friction", friction), ("spring", spring), ("damping", damping)):
            not_negative(f"a finite {name} of at least 0", value)
        self.name = "hopper"
        self.dt, self.stiffness, self.softness, self.friction = dt, stiffness, softness, friction
        self.step_seconds = dt
        self.spring, self.damping = spring, damping
        self.state_shape, self.control_shape = (10,), (2,)

    @ti.func
    def _leg(self, state):
        """(n_x, n_y, ℓ, n·w)."""
        across, along = state[3] - state[0], state[4] - state[1]
        length = ti.sqrt(across * across + along * along + _TINY * _TINY)
        n_x, n_y = across / length, along / length
        return n_x, n_y, length, n_x * (state[8] - state[5]) + n_y * (state[9] - state[6])

    @ti.func
    def _depth(self, height):
        """(s, -ds/dq)."""
        z = -height / self.softness
        small = ti.exp(-ti.abs(z))
        inside = 1.0 / (1.0 + small) if z > 0.0 else small / (1.0 + small)
        return self.softness * (ti.max(z, 0.0) + ti.log(1.0 + small)), inside

    @ti.func
    def advance(self, state, control):
        n_x, n_y, length, rate = self._leg(state)
        torque = TORQUE * ti.tanh(control[0])
        force = self.spring * (LEG_LENGTH - length) - self.damping * rate + THRUST * ti.tanh(control[1])
        side = torque / length
        f_x, f_y = force * n_x - side * n_y, force * n_y + side * n_x
        depth, _ = self._depth(state[4])
        normal = self.stiffness * depth * (1.0 - ti.tanh(state[9] / 0.5))
        grip = -self.friction * normal * ti.tanh(state[8] / 0.1)
        result = state
        result[5] = state[5] - self.dt * f_x / BODY_MASS
        result[6] = state[6] - self.dt * (f_y / BODY_MASS + GRAVITY)
        result[7] = state[7] - self.dt * torque / INERTIA
        result[8] = state[8] + self.dt * (f_x + grip) / FOOT_MASS
        result[9] = state[9] + self.dt * ((f_y + normal) / FOOT_MASS - GRAVITY)
        for i in ti.static(range(5)):
            result[i] = state[i] + self.dt * result[5 + i]
        return result

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        n_x, n_y, length, rate = self._leg(state)
        turn, push = ti.tanh(control[0]), ti.tanh(control[1])
        torque = TORQUE * turn
        force = self.spring * (LEG_LENGTH - length) - self.damping * rate + THRUST * push
        side = torque / length
        depth, inside = self._depth(state[4])
        sinking, sliding = ti.tanh(state[9] / 0.5), ti.tanh(state[8] / 0.1)
        normal = self.stiffness * depth * (1.0 - sinking)

        adjoint = next_adjoint
        for i in ti.static(range(5)):
            adjoint[5 + i] = next_adjoint[5 + i] + self.dt * next_adjoint[i]
        # Adjoints of the forces: each acts on the foot, and the leg's on the body in reverse.
        grip_bar, normal_bar = self.dt * adjoint[8] / FOOT_MASS, self.dt * adjoint[9] / FOOT_MASS
        f_x_bar = grip_bar - self.dt * adjoint[5] / BODY_MASS
        f_y_bar = normal_bar - self.dt * adjoint[6] / BODY_MASS
        torque_bar = -self.dt * adjoint[7] / INERTIA
        normal_bar -= self.friction * sliding * grip_bar

        force_bar, side_bar = f_x_bar * n_x + f_y_bar * n_y, f_y_bar * n_x - f_x_bar * n_y
        torque_bar += side_bar / length
        rate_bar = -self.damping * force_bar
        w_x, w_y = state[8] - state[5], state[9] - state[6]
        n_x_bar = force * f_x_bar + side * f_y_bar + rate_bar * w_x
        n_y_bar = force * f_y_bar - side * f_x_bar + rate_bar * w_y
        length_bar = -side_bar * side / length - self.spring * force_bar - (n_x_bar * n_x + n_y_bar * n_y) / length
        across_bar, along_bar = n_x_bar / length + length_bar * n_x, n_y_bar / length + length_bar * n_y

        adjoint[0] -= across_bar
        adjoint[1] -= along_bar
        adjoint[3] += across_bar
        adjoint[4] += along_bar - self.stiffness * (1.0 - sinking) * inside * normal_bar
        adjoint[5] -= rate_bar * n_x
        adjoint[6] -= rate_bar * n_y
        adjoint[8] += rate_bar * n_x - self.friction * normal * (1.0 - sliding * sliding) / 0.1 * grip_bar
        adjoint[9] += rate_bar * n_y - self.stiffness * depth * (1.0 - sinking * sinking) / 0.5 * normal_bar
        return adjoint, ti.Vector([TORQUE * (1.0 - turn * turn) * torque_bar, THRUST * (1.0 - push * push) * force_bar])

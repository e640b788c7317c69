"""Poles balanced on one cart by one shared force."""

import taichi as ti

from engine.checks import positive, whole
from engine.vector_system import VectorSystem

GRAVITY = 9.8
POLE_MASS = 0.1
TOTAL_MASS = 1.1
HALF_LENGTH = 0.5


class CartPole(VectorSystem):
    """n independent poles on one cart pushed by a force F.

        a_i   = (F + ml sinθ_i θ̇_i²) / M
        θ̈_i  = (g sinθ_i - cosθ_i a_i) / (l (4/3 - m cos²θ_i / M))
        ẍ     = (F + ml Σ_i (sinθ_i θ̇_i² - θ̈_i cosθ_i)) / M

    g = 9.8 m/s², m = 0.1 kg, M = 1.1 kg (total, for any number of poles), l = 0.5 m (half a pole), ml = m·l. θ = 0
    is upright. Semi-implicit Euler: velocities first, then positions with the new velocities; first order.

    State [2 + 2n]: x (m), ẋ (m/s), θ_1..θ_n (rad), θ̇_1..θ̇_n (rad/s). Control [1]: F (N).

    Source: Barto, Sutton and Anderson (1983) with the multi-pole loss of Schnell and Thuerey (ICLR 2024).

    Args:
        poles: number of poles, at least 1.
        dt: time step in seconds.
    """

    def __init__(self, poles: int = 1, dt: float = 0.01):
        poles = whole("cart-pole with at least 1 pole", poles)
        self.name = "cart-pole"
        self.poles, self.dt = poles, positive("a time step dt above 0 s", dt)
        self.step_seconds = self.dt
        self.state_shape, self.control_shape = (2 + 2 * poles,), (1,)

    @ti.func
    def advance(self, state, control):
        force = control[0]
        result = state
        cart = force
        for k in ti.static(range(self.poles)):
            angle, rate = state[2 + k], state[2 + self.poles + k]
            sin, cos = ti.sin(angle), ti.cos(angle)
            spin = sin * rate * rate
            acceleration = (force + POLE_MASS * HALF_LENGTH * spin) / TOTAL_MASS
            inertia = HALF_LENGTH * (4.0 / 3.0 - POLE_MASS / TOTAL_MASS * cos * cos)
            angular = (GRAVITY * sin - cos * acceleration) / inertia
            cart += POLE_MASS * HALF_LENGTH * (spin - angular * cos)
            result[2 + self.poles + k] = rate + self.dt * angular
            result[2 + k] = angle + self.dt * result[2 + self.poles + k]
        result[1] = state[1] + self.dt * cart / TOTAL_MASS
        result[0] = state[0] + self.dt * result[1]
        return result

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        force = control[0]
        adjoint = next_adjoint
        # ẋ' carries its own adjoint and, through x' = x + dt ẋ', that of x'.
        velocity_bar = next_adjoint[1] + self.dt * next_adjoint[0]
        adjoint[1] = velocity_bar
        cart_bar = self.dt * velocity_bar / TOTAL_MASS
        force_bar = cart_bar
        for k in ti.static(range(self.poles)):
            angle, rate = state[2 + k], state[2 + self.poles + k]
            sin, cos = ti.sin(angle), ti.cos(angle)
            acceleration = (force + POLE_MASS * HALF_LENGTH * sin * rate * rate) / TOTAL_MASS
            inertia = HALF_LENGTH * (4.0 / 3.0 - POLE_MASS / TOTAL_MASS * cos * cos)
            angular = (GRAVITY * sin - cos * acceleration) / inertia
            rate_bar = next_adjoint[2 + self.poles + k] + self.dt * next_adjoint[2 + k]
            angular_bar = self.dt * rate_bar - POLE_MASS * HALF_LENGTH * cos * cart_bar
            numerator_bar = angular_bar / inertia
            inertia_bar = -angular * numerator_bar
            acceleration_bar = -cos * numerator_bar
            spin_bar = POLE_MASS * HALF_LENGTH * (cart_bar + acceleration_bar / TOTAL_MASS)
            sin_bar = GRAVITY * numerator_bar + rate * rate * spin_bar
            cos_bar = (
                -acceleration * numerator_bar
                - 2.0 * HALF_LENGTH * POLE_MASS / TOTAL_MASS * cos * inertia_bar
                - POLE_MASS * HALF_LENGTH * angular * cart_bar
            )
            force_bar += acceleration_bar / TOTAL_MASS
            adjoint[2 + k] = next_adjoint[2 + k] + cos * sin_bar - sin * cos_bar
            adjoint[2 + self.poles + k] = rate_bar + 2.0 * sin * rate * spin_bar
        return adjoint, ti.Vector([force_bar])

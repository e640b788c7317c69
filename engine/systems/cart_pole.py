"""Poles balanced on one cart by one shared force."""

from typing import NamedTuple

import taichi as ti

from engine.checks import positive, whole
from engine.parameters import acts, with_values
from engine.vector_system import VECTOR, VectorSystem


class CartPoleParameters(NamedTuple):
    """Physical parameters, one value or one for each sample."""

    gravity: float = 9.8
    cart_mass: float = 1.0
    pole_mass: float = 0.1
    half_length: float = 0.5
    friction: float = 0.0

    @property
    def total_mass(self):
        return self.cart_mass + self.pole_mass


class CartPole(VectorSystem):
    """n independent poles on one cart pushed by a force P against friction.

        F     = P - c ẋ
        a_i   = (F + ml sinθ_i θ̇_i²) / M
        θ̈_i  = (g sinθ_i - cosθ_i a_i) / (l (4/3 - m cos²θ_i / M))
        ẍ     = (F + ml Σ_i (sinθ_i θ̇_i² - θ̈_i cosθ_i)) / M

    g = `gravity` = 9.8 m/s², m = `pole_mass` = 0.1 kg, M = `cart_mass` + m = 1.1 kg (for any number of poles),
    l = `half_length` = 0.5 m (half a pole), ml = m·l, c = `friction` = 0 kg/s, viscous. θ = 0 is upright.
    Semi-implicit Euler: velocities first, then positions with the new velocities; first order.

    State [2 + 2n]: x (m), ẋ (m/s), θ_1..θ_n (rad), θ̇_1..θ̇_n (rad/s). Control [1]: P (N). Parameters: those five.

    Source: Barto, Sutton and Anderson (1983) with the multi-pole loss of Schnell and Thuerey (ICLR 2024).

    Args:
        poles: number of poles, at least 1.
        dt: time step in seconds.
        parameters: values other than these, by name.
    """

    read_by_kernels = (*VECTOR, "poles", "dt", "sines")
    positive_parameters = ("cart_mass", "pole_mass", "half_length")

    def __init__(self, poles: int = 1, dt: float = 0.01, **parameters: float):
        poles = whole("cart-pole with at least 1 pole", poles)
        self.name = "cart-pole"
        self.poles, self.dt = poles, positive("a time step dt above 0 s", dt)
        self.step_seconds = self.dt
        self.step_weight = 0.25 * poles  # a pole takes 11 ns
        self.state_shape, self.control_shape = (2 + 2 * poles,), (1,)
        self.constants = with_values(self, CartPoleParameters(), parameters)

    @ti.func
    def advance(self, state, control, p: ti.template()):
        force = control[0]
        if ti.static(acts(p.friction)):
            force -= p.friction * state[1]
        result = state
        cart = force
        for k in ti.static(range(self.poles)):
            angle, rate = state[2 + k], state[2 + self.poles + k]
            sin, cos = self.sines(angle)
            spin = sin * rate * rate
            acceleration = (force + p.pole_mass * p.half_length * spin) / p.total_mass
            inertia = p.half_length * (4.0 / 3.0 - p.pole_mass / p.total_mass * cos * cos)
            angular = (p.gravity * sin - cos * acceleration) / inertia
            cart += p.pole_mass * p.half_length * (spin - angular * cos)
            result[2 + self.poles + k] = rate + self.dt * angular
            result[2 + k] = angle + self.dt * result[2 + self.poles + k]
        result[1] = state[1] + self.dt * cart / p.total_mass
        result[0] = state[0] + self.dt * result[1]
        return result

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint, p: ti.template()):
        force = control[0]
        if ti.static(acts(p.friction)):
            force -= p.friction * state[1]
        adjoint = next_adjoint
        # ẋ' carries its own adjoint and, through x' = x + dt ẋ', that of x'.
        velocity_bar = next_adjoint[1] + self.dt * next_adjoint[0]
        adjoint[1] = velocity_bar
        cart_bar = self.dt * velocity_bar / p.total_mass
        force_bar = cart_bar
        cart, moment_bar, total_bar, ratio_bar, gravity_bar, length_bar = force, 0.0, 0.0, 0.0, 0.0, 0.0
        for k in ti.static(range(self.poles)):
            angle, rate = state[2 + k], state[2 + self.poles + k]
            sin, cos = ti.sin(angle), ti.cos(angle)
            acceleration = (force + p.pole_mass * p.half_length * sin * rate * rate) / p.total_mass
            inertia = p.half_length * (4.0 / 3.0 - p.pole_mass / p.total_mass * cos * cos)
            angular = (p.gravity * sin - cos * acceleration) / inertia
            rate_bar = next_adjoint[2 + self.poles + k] + self.dt * next_adjoint[2 + k]
            angular_bar = self.dt * rate_bar - p.pole_mass * p.half_length * cos * cart_bar
            numerator_bar = angular_bar / inertia
            inertia_bar = -angular * numerator_bar
            acceleration_bar = -cos * numerator_bar
            spin_bar = p.pole_mass * p.half_length * (cart_bar + acceleration_bar / p.total_mass)
            sin_bar = p.gravity * numerator_bar + rate * rate * spin_bar
            cos_bar = (
                -acceleration * numerator_bar
                - 2.0 * p.half_length * p.pole_mass / p.total_mass * cos * inertia_bar
                - p.pole_mass * p.half_length * angular * cart_bar
            )
            force_bar += acceleration_bar / p.total_mass
            adjoint[2 + k] = next_adjoint[2 + k] + cos * sin_bar - sin * cos_bar
            adjoint[2 + self.poles + k] = rate_bar + 2.0 * sin * rate * spin_bar
            swing = sin * rate * rate - angular * cos
            cart += p.pole_mass * p.half_length * swing
            moment_bar += swing * cart_bar + sin * rate * rate * acceleration_bar / p.total_mass
            total_bar -= acceleration * acceleration_bar
            ratio_bar -= p.half_length * cos * cos * inertia_bar
            length_bar += inertia / p.half_length * inertia_bar
            gravity_bar += sin * numerator_bar
        total_bar = (total_bar - cart * cart_bar - p.pole_mass * ratio_bar / p.total_mass) / p.total_mass
        if ti.static(acts(p.friction)):
            adjoint[1] -= p.friction * force_bar
        pole_bar = p.half_length * moment_bar + ratio_bar / p.total_mass + total_bar
        length_bar += p.pole_mass * moment_bar
        parameters_bar = ti.Vector([gravity_bar, total_bar, pole_bar, length_bar, -state[1] * force_bar])
        return adjoint, ti.Vector([force_bar]), parameters_bar

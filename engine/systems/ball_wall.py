"""A ball thrown at a hard wall: the smallest problem whose first-order gradient is empty or biased."""

import taichi as ti

from engine.checks import finite, positive, several
from engine.errors import SettingError
from engine.vector_system import VECTOR, VectorSystem

GRAVITY = 9.8


class BallWall(VectorSystem):
    """A ball is launched from the ground at t = 0; a wall that it does not clear stops it, and the ground for good.

    With v⁺ = u + v₀ at the first step, v⁺ = v - (0, g dt) later, and x⁺ = x + dt v⁺ (semi-implicit Euler, first order):

        the wall:    x < w <= x⁺ and y + (y⁺ - y) (w - x)/(x⁺ - x) < h   ⟹   x' = w, v'_x = 0
        the ground:  y⁺ < 0   ⟹   x' = x + (x⁺ - x) y/(y - y⁺), y' = 0, v' = 0

    Where the ball ends jumps with u at the edge of the wall and does not depend on it at all below. Derivatives are
    those of the branch that was taken, as any differentiable simulator of a hard contact gives them: 0 through the
    wall, and the mean of them over noise is not the derivative of the mean.

    State [5]: x, y (m), v_x, v_y (m/s), the clock (steps since the start). Control [2]: what is added to the
    launch velocity v₀ (m/s), used while the clock is 0. g = 9.8 m/s².

    Source: after "ball with wall" of Suh, Simchowitz, Zhang and Tedrake, "Do Differentiable Simulators Give Better
    Policy Gradients?" (ICML 2022).

    Args:
        dt: time step in seconds; wall, height: w and h in metres; launch: v₀.
    """

    read_by_kernels = (*VECTOR, "dt", "wall", "height", "launch")

    def __init__(
        self, dt: float = 0.02, wall: float = 2.0, height: float = 1.0, launch: tuple[float, float] = (0.0, 0.0)
    ):
        self.name = "ball-wall"
        self.dt = self.step_seconds = positive("a time step dt above 0 s", dt)
        self.wall, self.height = positive("a wall at a distance above 0", wall), positive("a height above 0", height)
        self.launch = tuple(
            finite("a finite launch velocity", number) for number in several("a launch as 2 velocities", launch)
        )
        if len(self.launch) != 2:
            raise SettingError(f"Expected a launch as 2 velocities, got {self.launch}.")
        self.state_shape, self.control_shape = (5,), (2,)

    @ti.func
    def advance(self, state, control):
        v_x, v_y, stuck, landed, part = self._flight(state, control)
        x, y = state[0] + self.dt * v_x, state[1] + self.dt * v_y
        if landed:
            x, y, v_x, v_y = state[0] + part * self.dt * v_x, 0.0, 0.0, 0.0
        if stuck:
            x, v_x = self.wall, 0.0
        return ti.Vector([x, y, v_x, v_y, state[4] + 1.0])

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        v_x, v_y, stuck, landed, part = self._flight(state, control)
        x_bar, y_bar, v_x_bar, v_y_bar = next_adjoint[0], next_adjoint[1], next_adjoint[2], next_adjoint[3]
        if stuck:
            x_bar, v_x_bar = 0.0, 0.0
        to_x, to_y = x_bar, y_bar
        v_x_bar += self.dt * x_bar
        v_y_bar += self.dt * y_bar
        if landed:
            # x' = x + y v_x / -v_y
            v_x_bar, to_y = x_bar * part * self.dt, -x_bar * v_x / v_y
            v_y_bar = x_bar * state[1] * v_x / (v_y * v_y)
        flies = ti.select(state[4] < 0.5, 0.0, 1.0)
        pushed = ti.Vector([(1.0 - flies) * v_x_bar, (1.0 - flies) * v_y_bar])
        return ti.Vector([to_x, to_y, flies * v_x_bar, flies * v_y_bar, next_adjoint[4]]), pushed

    @ti.func
    def _flight(self, state, control):
        """(v⁺, whether the wall and whether the ground stops the ball, after which part of the step)."""
        v_x, v_y = state[2], state[3] - GRAVITY * self.dt
        if state[4] < 0.5:
            v_x, v_y = self.launch[0] + control[0], self.launch[1] + control[1]
        x, y = state[0] + self.dt * v_x, state[1] + self.dt * v_y
        landed = y < 0.0
        part = 1.0
        if landed:
            part = state[1] / (state[1] - y)
            x = state[0] + part * self.dt * v_x
        stuck = state[0] < self.wall and x >= self.wall
        if stuck:
            stuck = state[1] + (self.wall - state[0]) / v_x * v_y < self.height
        return v_x, v_y, stuck, landed, part

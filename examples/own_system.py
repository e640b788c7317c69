"""A system of your own with its task and its drawing: a pendulum that a motor swings up.

evenflow check --plugin own_system.py     # whether its adjoint is right, on every backend that starts here
evenflow train pendulum --plugin own_system.py
evenflow view RUN --plugin own_system.py
"""

from dataclasses import dataclass

import numpy as np
import taichi as ti
import torch

import evenflow as ef

array = ti.types.ndarray(ndim=2)


@ti.kernel
def step(x: array, u: array, y: array, dt: float):
    """φ̈ = sin φ + u, φ from the top; semi-implicit Euler."""
    for b in range(x.shape[0]):
        rate = x[b, 1] + dt * (ti.sin(x[b, 0]) + u[b, 0])
        y[b, 0] = x[b, 0] + dt * rate
        y[b, 1] = rate


@ti.kernel
def pull_back(x: array, u: array, to_y: array, to_x: array, to_u: array, dt: float):
    """λ_x = Aᵀ λ_y, and Bᵀ λ_y added to λ_u; without this kernel, on CPU and CUDA, Taichi differentiates the step."""
    for b in range(x.shape[0]):
        to_rate = to_y[b, 1] + dt * to_y[b, 0]
        to_x[b, 0] = to_y[b, 0] + dt * ti.cos(x[b, 0]) * to_rate
        to_x[b, 1] = to_rate
        to_u[b, 0] += dt * to_rate


class Pendulum(ef.KernelSystem):
    """A rod of length 1 on a motor: state (φ, φ̇), control the motor's torque."""

    def __init__(self, dt: float = 0.05):
        super().__init__(step, (2,), (1,), constants=(dt,), pull_back=pull_back, name="pendulum")


class Rod(ef.Drawing):
    """The rod, its end, and the circle that the end moves on."""

    def __init__(self, system, goal=None):
        pass

    def frame(self, states):
        return ef.Frame.of_box((-1.2, -1.2), (1.2, 1.2), (0.0, 0.0), (1.0, 1.0))

    def draw(self, scene, frame, moment):
        angle = float(moment.state[0])
        end = np.array([[np.sin(angle), np.cos(angle)]])
        scene.polyline(frame(np.concatenate([np.zeros((1, 2)), end])), 0.02, 0x888888)
        colours = np.array([0x3366AA], dtype=np.uint32) if moment.shades is None else moment.shades[:1]
        scene.circles(frame(end), 0.03, colours)

    def sizes(self, adjoints):
        return np.linalg.norm(adjoints, axis=1, keepdims=True)

    def push(self, state, start, drag):
        return state + np.array([0.0, drag[0]])


class Upright(ef.Objective):
    def final(self, state):
        return 1.0 - torch.cos(state[:, 0]) + 0.1 * state[:, 1] ** 2


@dataclass(frozen=True)
class PendulumOptions:
    """Swing a rod up by a motor, and stop it there."""

    horizon: int = 100
    """Steps."""
    dt: float = 0.05
    """Time step."""

    def build(self):
        system = Pendulum(self.dt)
        start = ef.uniform_states((3.0, -0.1), (3.3, 0.1))
        return ef.Task("pendulum", system, Upright(), start, self.horizon, ef.policy_for(system, hidden=(32, 32)))


ef.register_system("pendulum", Pendulum)
ef.register_drawing(Pendulum, Rod)
ef.register_task("pendulum", PendulumOptions)

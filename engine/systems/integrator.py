"""The simplest system: the control is added to the state."""

import taichi as ti

from engine.system import positive_shape
from engine.vector_system import VECTOR, VectorSystem


class Integrator(VectorSystem):
    """x' = x + u.

    State [n], control [n]; exact. The system of Fig. 1 in Schnell and Thuerey (ICLR 2024), there with n = 1.

    Args:
        dimensions: n.
    """

    read_by_kernels = VECTOR

    def __init__(self, dimensions: int = 1):
        self.name = "integrator"
        self.state_shape = self.control_shape = positive_shape("dimensions", (dimensions,))

    @ti.func
    def advance(self, state, control):
        return state + control

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        return next_adjoint, next_adjoint

"""Linear dynamics, for which optimal controllers and gradients are known in closed form."""

from collections.abc import Sequence

import taichi as ti
import torch

from engine.errors import ShapeError
from engine.vector_system import VECTOR, VectorSystem


class LinearSystem(VectorSystem):
    """x' = A x + B u.

    State [n], control [m]; the discrete map is exact, units are the user's.

    Args:
        A: [n, n] and B: [n, m], nested sequences, arrays or tensors; n at most 32.
    """

    read_by_kernels = (*VECTOR, "A", "B")

    def __init__(self, A: Sequence[Sequence[float]] | torch.Tensor, B: Sequence[Sequence[float]] | torch.Tensor):
        self.name = "linear"
        self.A, self.B = _matrix("A", A), _matrix("B", B)
        n, m = len(self.A), len(self.B[0])
        if len(self.A[0]) != n or len(self.B) != n:
            raise ShapeError(
                f"Expected A of shape [n, n] and B of shape [n, m], got {[n, len(self.A[0])]} and {[len(self.B), m]}."
            )
        if n > 32:
            raise ShapeError(f"Expected at most 32 states, which are unrolled in the kernel, got {n}.")
        self.state_shape, self.control_shape = (n,), (m,)

    @ti.func
    def advance(self, state, control):
        result = ti.Vector.zero(float, self.state_shape[0])
        for i in ti.static(range(self.state_shape[0])):
            for j in ti.static(range(self.state_shape[0])):
                result[i] += self.A[i][j] * state[j]
            for j in ti.static(range(self.control_shape[0])):
                result[i] += self.B[i][j] * control[j]
        return result

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        adjoint = ti.Vector.zero(float, self.state_shape[0])
        cotangent = ti.Vector.zero(float, self.control_shape[0])
        for i in ti.static(range(self.state_shape[0])):
            for j in ti.static(range(self.state_shape[0])):
                adjoint[j] += self.A[i][j] * next_adjoint[i]
            for j in ti.static(range(self.control_shape[0])):
                cotangent[j] += self.B[i][j] * next_adjoint[i]
        return adjoint, cotangent


def _matrix(name: str, values) -> tuple[tuple[float, ...], ...]:
    try:
        matrix = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"Expected {name} as a matrix of numbers, got {values!r}.") from error
    if matrix.dim() != 2 or 0 in matrix.shape:
        raise ShapeError(f"Expected {name} as a matrix, got shape {list(matrix.shape)}.")
    if not torch.isfinite(matrix).all():
        raise ShapeError(f"Expected {name} with finite entries, got {matrix.tolist()}.")
    return tuple(tuple(float(value) for value in row) for row in matrix)

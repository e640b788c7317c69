"""What the sweeps through one trajectory write to, and how many bytes that takes."""

import math

import torch

from engine import runtime
from engine.system import System

# Tensors of one state that a sweep of four rules holds at once, and sets of parameters.
_STATES, _PARAMETERS = 12, 7


class SweepBuffers:
    """Adjoints and their parts for the slots of a trajectory.

    Args:
        system: the physics, with states of n numbers and controls of m.
        slots, batch: of the trajectory.
        holds_jacobian: whether K is computed for whole blocks of time.

    Attributes:
        adjoints: λ [slots + 1, B, *state_shape].
        cotangents: μ [slots, B, *control_shape].
        direct_states, direct_controls: ∂ℓ_t/∂x_t and ∂ℓ_t/∂u_t, shaped as states and controls.
        jacobian: K [slots, B, m, n], or None.
    """

    def __init__(self, system: System, slots: int, batch: int, holds_jacobian: bool):
        options = {"dtype": runtime.current().dtype, "device": runtime.current().device}
        n, m = math.prod(system.state_shape), math.prod(system.control_shape)
        self.adjoints = torch.zeros(slots + 1, batch, *system.state_shape, **options)
        self.cotangents = torch.zeros(slots, batch, *system.control_shape, **options)
        self.direct_states = torch.zeros(slots, batch, *system.state_shape, **options)
        self.direct_controls = torch.zeros_like(self.cotangents)
        self.jacobian = torch.zeros(slots, batch, m, n, **options) if holds_jacobian else None

    @staticmethod
    def slot_bytes(system: System, batch: int, holds_jacobian: bool) -> int:
        """Bytes of one slot."""
        n, m = math.prod(system.state_shape), math.prod(system.control_shape)
        return batch * (2 * n + 2 * m + (m * n if holds_jacobian else 0)) * runtime.current().dtype.itemsize

    @staticmethod
    def fixed_bytes(system: System, batch: int, block: int, parameters: int) -> int:
        """Bytes that do not depend on the slots, for `parameters` of all members and blocks of `block` steps."""
        n, m = math.prod(system.state_shape), math.prod(system.control_shape)
        # Costs are differentiated block by block: leaves, gradients and two temporaries of their size.
        numbers = _STATES * n * batch + _PARAMETERS * parameters + 4 * block * batch * (n + m)
        return numbers * runtime.current().dtype.itemsize

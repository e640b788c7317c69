"""A gradient of your own: a rule that the adjoint passes through between any two steps.

evenflow train cart-pole --plugin own_gradient.py --gradients R "damped(0.9)"
evenflow bench variants cart-pole --plugin own_gradient.py --gradients R "damped(0.9)" --out study
"""

from dataclasses import dataclass
from typing import ClassVar

import taichi as ti

import evenflow as ef


@dataclass(frozen=True)
class Damped:
    """λ_t = direct + factor · (physics path + policy path): what arrives from later steps is damped at each."""

    factor: float

    uses_physics: ClassVar[bool] = True
    uses_policy: ClassVar[bool] = True

    def __call__(self, direct, physics, policy, t):
        return direct + self.factor * (physics + policy)

    @ti.func  # the same of one sample, on Taichi's vectors: may be left out, and makes its sweeps as fast as R's
    def on_sample(self, direct, physics, policy, t):
        return direct + self.factor * (physics + policy)


ef.register_gradient("damped", Damped, "what arrives from later steps times the factor at every step")

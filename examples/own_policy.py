"""A policy of your own: any torch module without memory, in a task that ships otherwise.

evenflow train cart-pole-residual --plugin own_policy.py --gradients R C --seeds 4
evenflow view RUN --plugin own_policy.py
"""

from dataclasses import dataclass, replace
from functools import partial

from torch import nn

import evenflow as ef


class Residual(nn.Module):
    """A linear law plus a small network on normalised states; every seed draws weights of its own."""

    def __init__(self, states: int, controls: int, width: int = 32):
        super().__init__()
        self.law = nn.Linear(states, controls)
        self.net = nn.Sequential(nn.LayerNorm(states), nn.Linear(states, width), nn.SiLU(), nn.Linear(width, controls))

    def forward(self, state):
        return self.law(state) + self.net(state)


@dataclass(frozen=True)
class ResidualOptions:
    """Swing up poles as cart-pole does, by a residual network."""

    poles: int = 1
    """Number of poles on the cart."""
    horizon: int = 100
    """Steps."""

    def build(self):
        task = ef.build_task("cart-pole", poles=self.poles, horizon=self.horizon)
        make = partial(ef.ModulePolicy, partial(Residual, 2 + 2 * self.poles, 1))
        return replace(task, name="cart-pole-residual", policy=ef.policy_for(task.system, make))


ef.register_task("cart-pole-residual", ResidualOptions)

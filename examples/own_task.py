"""A task of your own: what a system that ships is to do, and where it starts.

evenflow train docking --plugin own_task.py --gradients R M C
evenflow view RUN --plugin own_task.py
"""

from dataclasses import dataclass

import evenflow as ef


class Docked(ef.Objective):
    """Place and speed are to be 0 at the end: x² + 10 v²."""

    def final(self, state):
        return state[:, 0] ** 2 + 10.0 * state[:, 1] ** 2


@dataclass(frozen=True)
class DockingOptions:
    """Bring a cart to rest at a dock, by its thrust."""

    horizon: int = 50
    """Steps of 0.1 s."""

    def build(self):
        system = ef.LinearSystem(((1.0, 0.1), (0.0, 1.0)), ((0.0,), (0.1,)))  # x and v, thrust
        start = ef.uniform_states((-1.0, -0.5), (1.0, 0.5))
        return ef.Task("docking", system, Docked(), start, self.horizon, ef.policy_for(system, hidden=(32,)))


ef.register_task("docking", DockingOptions)

"""What the tasks with a herd share: what is minimised, and where drivers and evaders start."""

import math

import torch

from training.objectives import Aimed, after_the_start


class Herd(Aimed):
    """Mean over steps 1..T, evaders and x/y of (x_e - target)², plus rc times the mean of c² over steps and controls.

    Args:
        drivers: how many of the particles, the first ones, are drivers.
        horizon: T.
        regularisation: rc.
        goal: (x, y) where the evaders should be.
    """

    def __init__(self, drivers: int, horizon: int, regularisation: float, goal: tuple[float, float]):
        super().__init__(goal)
        self.drivers, self.horizon, self.regularisation = drivers, horizon, regularisation

    def running(self, states, controls, steps):
        effort = controls.flatten(2).square().mean(2)
        return after_the_start(steps, self.final(states)) + self.regularisation / self.horizon * effort

    def final(self, state):
        away = state[..., :2, self.drivers :] - self.target(state)
        return away.square().flatten(-2).mean(-1) / self.horizon


def scattered(
    drivers: int, evaders: int, count: int, generator: torch.Generator, half_width: float = 0.5
) -> torch.Tensor:
    """Initial states [count, 4, drivers + evaders], float64, at rest.

    Drivers stand in the annulus of radius 3 to 4; evaders within ±`half_width` of one point in the annulus 1 to 2.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    def annulus(number: int, inner: float) -> torch.Tensor:
        radius, angle = inner + uniform(1, number), 2.0 * math.pi * uniform(1, number)
        return radius * torch.cat([angle.cos(), angle.sin()], dim=1)

    states = torch.zeros(count, 4, drivers + evaders, dtype=torch.float64)
    states[:, :2, :drivers] = annulus(drivers, 3.0)
    states[:, :2, drivers:] = annulus(1, 1.0) + 2.0 * half_width * (uniform(2, evaders) - 0.5)
    return states

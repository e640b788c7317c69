"""The iterative linear-quadratic regulator finds at once what a linear-quadratic problem has as its solution."""

import pytest
import torch
from conftest import uniform

from benchmarks.peers.ilqr import ilqr
from engine.systems import LinearSystem
from training.objectives import Quadratic

pytestmark = pytest.mark.float64


def test_a_linear_quadratic_problem_is_solved_in_one_iteration():
    A, B = ((1.0, 0.1, 0.0), (-0.2, 0.97, 0.1), (0.0, 0.3, 1.1)), ((0.0, 0.1), (0.1, 0.0), (0.05, 0.2))
    system, objective, initial = LinearSystem(A, B), Quadratic((1.0, 2.0, 0.5), 0.1), uniform(0, 3)
    step, act = torch.tensor(A, dtype=torch.float64), torch.tensor(B, dtype=torch.float64)

    def cost(controls):
        state, total = initial, initial.new_zeros(())
        for control in controls.view(6, 2):
            state = step @ state + act @ control
            total = total + objective.final(state) + 0.05 * control.square().sum()
        return total

    start = uniform(1, 6, 2)
    bends = torch.autograd.functional.hessian(cost, start.flatten())
    (slope,) = torch.autograd.grad(cost(leaf := start.flatten().requires_grad_()), leaf)
    best = cost(start.flatten() - torch.linalg.solve(bends, slope))
    _, found = ilqr(system, objective, initial, start.detach(), iterations=1)
    assert found == pytest.approx(float(best), rel=1e-10)
    assert float(best) < 0.9 * float(cost(start))

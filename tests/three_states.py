"""A linear system of three states and two controls, and what policies that users write are tried with on it."""

from conftest import StepCost

from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, LinearSystem

RULES = (FULL, PHYSICS_ONLY, POLICY_ONLY, ONE_STEP)
N, M, ROWS, STEPS = 3, 2, 4, 5
COST = StepCost(lambda x, u, t: x.square().sum(1) + u.square().sum(1), lambda x: x.square().sum(1))


def three_states():
    return LinearSystem([[0.9, 0.1, 0.0], [0.0, 0.8, 0.1], [0.1, 0.0, 0.7]], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])

"""Physical parameters in a tape."""

import pytest
from conftest import relative_error, swing_up_states, uniform
from test_tape import BATCH, COST, accuracy, build_rollout

from engine import FULL, PHYSICS_ONLY, RolloutTape


@pytest.mark.cuda
def test_parameters_that_require_a_gradient_get_that_of_the_first_rule():
    rollout = build_rollout(parameters=("pole_mass",))
    initial, masses = swing_up_states(3, BATCH, 1), uniform(4, BATCH, 1, low=0.1, high=0.2).requires_grad_()
    rollout(initial, parameters=masses)
    expected = rollout.backward([PHYSICS_ONLY], COST).physical[PHYSICS_ONLY].clone()
    for times in (1, 2):
        with RolloutTape(PHYSICS_ONLY, FULL):
            rollout(initial, COST, masses)
        assert relative_error(masses.grad, times * expected) < accuracy()
    with RolloutTape() as tape:
        rollout(initial, COST, masses.detach())
    assert not tape.gradients(rollout).physical

"""One value where several belong, and sizes as NumPy has them."""

# pyright: reportArgumentType=false

import json

import numpy as np
import pytest
import torch

import evenflow as ef
from policies import policy_from

pytestmark = pytest.mark.float64

MISTAKES = {
    "a mass": (lambda: ef.NBody(masses=1.0), r"masses of bodies in a tuple, got 1\.0"),
    "a thruster": (lambda: ef.NBody(thrusters=1), r"bodies in a tuple, got 1"),
    "a length": (lambda: ef.Fluid(10, 1, 1.0, 0.1), r"lengths of a box, got 1\.0"),
    "a velocity": (lambda: ef.BallWall(launch=(1.0,)), r"a launch as 2 velocities, got \(1\.0,\)"),
    "a component": (lambda: ef.Observation.components(3), r"components in a tuple, got 3"),
    "a name": (lambda: ef.Observation.components(["x"]), r"by their places, such as \[0, 2\], got \['x'\]"),
    "a shape": (lambda: ef.Observation(lambda *given: given[0], 4), r"positive integers such as \(4,\), got 4"),
    "numbers to hold": (lambda: ef.Held(3, 2), r"a system such as CartPole\(1\), got 3"),
    "a word to clip": (lambda: ef.Member(clipping="norm"), r"Clipping\('norm', 1\.0\), got 'norm'"),
    "a policy for a function": (
        lambda: ef.Trainer(ef.build_task("cart-pole"), [ef.Member()], policy=ef.MLP((4,), (1,))),
        r"a function that builds a policy, as policy_for gives, got a MLP",
    ),
    "a width": (lambda: ef.Moments((4, 3), (2, 1), hidden=64), r"hidden layers of at least 1 unit, got 64"),
    "a feature": (lambda: ef.DeepSets((4, 3), (2, 1), features=16), r"at least 1 feature, got 16"),
    "a filter": (lambda: ef.Convolutional((2, 9), (1,), filters=60), r"filters of at least 1, got 60"),
    "a quantile": (lambda: ef.Moments((4, 3), (2, 1), quantiles=0.5), r"quantiles from 0 to 1, got 0\.5"),
    "half a place": (lambda: ef.Moments((4, 3), (2, 1), actuators=(0.5,)), r"places of particles, got \(0\.5,\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_sentence(name):
    make, message = MISTAKES[name]
    with pytest.raises(ef.EvenflowError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("Expected ")


def test_components_beyond_the_state_are_told():
    seen = ef.Observation.components([0, 9])
    with pytest.raises(ef.ShapeError, match=r"components below 4, which a state has, got \[0, 9\]"):
        seen(torch.zeros(1, 2, 4, dtype=torch.float64), torch.zeros(1), {})
    last = ef.Observation.components([-1])(torch.arange(4.0).view(1, 1, 4), torch.zeros(1), {})
    assert last.tolist() == [[[3.0]]]


@pytest.mark.parametrize(
    "policy",
    [
        lambda: ef.Convolutional((2, 9), (1,), filters=np.array([4, 4]), width=np.int64(3)),
        lambda: ef.Moments((4, 3), (2, 2), hidden=np.array([8]), actuators=np.arange(2)),
        lambda: ef.DeepSets((4, 3), (2, 2), features=np.array([8])),
    ],
    ids=["convolutional", "moments", "deep sets"],
)
def test_sizes_from_numpy_come_back_from_a_checkpoint(policy):
    made = policy()
    again = policy_from(json.loads(json.dumps(made.architecture, default=str)))
    assert again.architecture == made.architecture


def test_a_plan_that_cannot_be_is_told_by_what_it_lacks():
    from engine.plan import plan

    with pytest.raises(ef.BudgetError, match="which is what kernels can index"):
        plan(10, 1, "1000GiB", 8, 8, 8, elements_per_slot=2**31)
    task = ef.build_task("cart-pole")
    policy = task.policy(1, dtype=torch.float64, device=torch.device("cpu"))
    with pytest.raises(ef.BudgetError, match="a memory budget of at least"):
        ef.Trajectory(task.system, policy, task.horizon, 64, memory="10KiB", forward_only=True)

"""Controls as parameters: what acts when, gradients of every member, segments, storing, bad use."""

import pytest
import torch
from conftest import relative_error, swing_up_states, tensor_options, uniform

import engine
from engine import FULL, PHYSICS_ONLY, CartPole, Observation, Rollout
from policies import OpenLoop, PolicyError, policy_from
from training import build_task

SYSTEM, HORIZON, MEMBERS = CartPole(1), 7, 3


def loop(members=MEMBERS, seed=1):
    made = OpenLoop((1,), HORIZON, members, **tensor_options())
    made.theta.data.copy_(uniform(seed, members, HORIZON, low=-5.0, high=5.0))
    return made


def swept(made, **options):
    rollout = Rollout(SYSTEM, made, HORIZON, 2 * made.members, observation=Observation.clock(), **options)
    objective = build_task("cart-pole").objective
    rollout(swing_up_states(2, 2 * made.members, 1))
    return rollout, rollout.backward([FULL, PHYSICS_ONLY], objective)


def test_every_step_has_its_own_control_whatever_the_state():
    made = loop()
    rollout, _ = swept(made)
    expected = made.theta.detach().T.repeat_interleave(2, 1).unsqueeze(2)
    assert torch.equal(rollout.controls, expected)
    steps = torch.tensor([-3.0, 0.0, 2.4, 99.0], **tensor_options()).view(1, 4, 1).expand(MEMBERS, 4, 1)
    assert torch.equal(made(steps)[..., 0], made.theta[:, [0, 0, 2, HORIZON - 1]])


@pytest.mark.float64
def test_the_gradient_is_the_derivative_of_each_control_and_needs_no_policy_path():
    made = loop()
    rollout, found = swept(made)
    assert torch.equal(found.parameters[FULL], found.parameters[PHYSICS_ONLY])
    objective, initial = build_task("cart-pole").objective, swing_up_states(2, 2 * MEMBERS, 1)
    for t in range(HORIZON):
        values = []
        for sign in (1, -1):
            made.theta.data[:, t] += sign * 1e-5
            values.append(rollout.forward(initial, objective).view(MEMBERS, 2).mean(1))
            made.theta.data[:, t] -= sign * 1e-5
        assert relative_error(found.parameters[FULL][:, t], (values[0] - values[1]) / 2e-5) < 1e-6  # rounding of losses


def test_segments_change_no_bit_and_members_are_as_they_would_be_alone():
    whole, expected = swept(loop())
    cut, found = swept(loop(), segment=2)
    assert torch.equal(whole.controls, cut.controls)
    assert torch.equal(found.initial[FULL], expected.initial[FULL])
    alone = OpenLoop((1,), HORIZON, 1, **tensor_options())
    alone.theta.data.copy_(loop().theta.data[1:2])
    rollout = Rollout(SYSTEM, alone, HORIZON, 2, observation=Observation.clock())
    rollout(swing_up_states(2, 2 * MEMBERS, 1)[2:4].contiguous())
    own = rollout.backward([FULL], build_task("cart-pole").objective).parameters[FULL]
    accuracy = 1e-12 if engine.current().precision == "float64" else 1e-4
    assert relative_error(own[0], expected.parameters[FULL][1]) < accuracy


@pytest.mark.float64
def test_it_is_built_again_from_its_architecture_and_starts_at_zero():
    made = OpenLoop((2, 3), 4, 2)
    made.initialise(0, torch.Generator().manual_seed(0))
    assert not made.theta.any()
    again = policy_from(made.architecture, 2)
    assert isinstance(again, OpenLoop)
    assert (again.control_shape, again.horizon, again.theta.shape) == ((2, 3), 4, (2, 24))


def test_a_rollout_that_does_not_show_it_the_time_is_refused():
    with pytest.raises(PolicyError, match=r"^Expected a policy for states of shape \[4\], got one for \[1\]\.$"):
        Rollout(SYSTEM, loop(), HORIZON, 2 * MEMBERS)
    with pytest.raises(PolicyError, match=r"^Expected an open loop of at least 1 step, got 0\.$"):
        OpenLoop((1,), 0)


def test_a_control_shape_that_is_none_is_refused():
    with pytest.raises(PolicyError, match=r"^Expected a control shape of sizes of at least 1, such as .*, got 3\.$"):
        OpenLoop(3, 100)  # type: ignore[arg-type]

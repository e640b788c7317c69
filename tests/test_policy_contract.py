"""The contract of a policy, for every one that ships: a newcomer is tested by being listed."""

import json
import math
from functools import partial

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from torch import nn
from traces import check_trace, traced

import engine
from policies import (
    MLP,
    Convolutional,
    DeepSets,
    Linear,
    ModulePolicy,
    Moments,
    Policy,
    Polynomial,
    policy_from,
)
from policies.architecture import CLASSES, is_ours

ROWS, SLOTS = 4, 3
"""Samples of one member, and slots of a trace."""


def module(members, dtype=None, device=None):
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype=dtype)  # noqa: E731
    policy = ModulePolicy(build, (2, 3), (2,), members=members)
    return policy.to(device)


EXAMPLES = {
    "MLP": partial(MLP, (2, 3), (2,), (7, 6)),
    "MLP without hidden layers": partial(MLP, (6,), (5,), ()),
    "Convolutional": partial(Convolutional, (2, 9), (2,), (4, 3)),
    "Linear": partial(Linear, (2, 3), (2,)),
    "Linear without bias": partial(Linear, (3,), (2,), bias=False),
    "Polynomial": partial(Polynomial, (3,)),
    "Moments": partial(Moments, (4, 9), (2, 2), (0.0, 0.5, 1.0), (7, 6), actuators=(4, 0)),
    "Moments without quantiles": partial(Moments, (4, 9), (2, 2), (), (7,)),
    "DeepSets": partial(DeepSets, (4, 9), (2, 2), (5, 6), (7,)),
    "ModulePolicy": module,
}


@pytest.fixture(params=EXAMPLES)
def build(request):
    return EXAMPLES[request.param]


def with_random_parameters(build, members):
    """Of this many members, with no parameter that is 0."""
    policy = build(members=members, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    return policy


def accuracy():
    return 1e-12 if engine.current().precision == "float64" else 1e-4


@pytest.mark.float64
def test_every_policy_that_ships_is_here():
    # An open loop is no function of states; tests/test_open_loop.py is about it.
    assert {name.split(" ")[0] for name in EXAMPLES} == {*CLASSES, "ModulePolicy"} - {"OpenLoop"}


@pytest.mark.parametrize("members", [1, 3])
def test_it_maps_states_of_every_member_to_controls(build, members):
    policy = with_random_parameters(build, members)
    assert isinstance(policy, Policy)
    assert policy.theta.shape == (policy.members, policy.parameter_count) == (members, policy.theta.shape[1])
    assert policy.theta.requires_grad
    states = uniform(1, members, ROWS, *policy.state_shape)
    given = states.clone()
    controls = policy(states)
    assert (controls.shape, controls.dtype) == ((members, ROWS, *policy.control_shape), policy.dtype)
    assert torch.equal(states, given)
    policy.check(policy.state_shape, policy.control_shape, differentiated=True)


def test_a_member_acts_as_it_would_alone(build):
    policy, alone = with_random_parameters(build, 3), with_random_parameters(build, 1)
    states = uniform(1, 3, ROWS, *policy.state_shape)
    for member in range(3):
        alone.theta.data.copy_(policy.theta.data[member : member + 1])
        assert relative_error(alone(states[member : member + 1])[0], policy(states)[member]) < accuracy()


@pytest.mark.float64
def test_initial_parameters_depend_on_the_generator_alone(build):
    alone, third, single = build(members=1), build(members=3, dtype=torch.float64), build(members=1)
    alone, single = alone.to(torch.float64), single.to(torch.float32)
    torch.manual_seed(1)
    alone.initialise(0, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    third.theta.data.fill_(0.5)
    third.initialise(2, torch.Generator().manual_seed(7))
    single.initialise(0, torch.Generator().manual_seed(7))
    assert alone.theta.any()
    assert torch.equal(third.theta[2], alone.theta[0])
    assert torch.equal(third.theta[:2], torch.full_like(third.theta[:2], 0.5))
    assert torch.equal(single.theta, alone.theta.float())
    alone.initialise(0, torch.Generator().manual_seed(8))
    assert not torch.equal(third.theta[2], alone.theta[0])


@pytest.mark.parametrize("members", [1, 3])
def test_its_architecture_says_how_to_build_it_again(build, members):
    policy = with_random_parameters(build, members)
    if isinstance(policy, ModulePolicy):
        assert not is_ours(policy.architecture)
        return
    read = json.loads(json.dumps(policy.architecture))
    other = policy_from(read, members, **tensor_options())
    assert (type(other), other.architecture) == (type(policy), policy.architecture)
    other.theta.data.copy_(policy.theta.data)
    states = uniform(1, members, ROWS, *policy.state_shape)
    assert torch.equal(other(states), policy(states))


@pytest.mark.parametrize(
    ("members", "chosen"), [(1, slice(0, 1)), (3, slice(0, 3)), (3, slice(1, 2)), (3, slice(1, 3))]
)
@pytest.mark.parametrize(("first", "last"), [(0, SLOTS), (1, 2)])
def test_its_trace_equals_autograd(build, members, chosen, first, last):
    check_trace(with_random_parameters(build, members), SLOTS, ROWS, first, last, chosen)


@pytest.mark.parametrize("members", [1, 3])
def test_a_step_is_the_same_to_the_bit_in_every_slot(build, members):
    policy, batch = with_random_parameters(build, members), members * ROWS
    states = uniform(1, batch, *policy.state_shape).expand(SLOTS, *(-1,) * (1 + len(policy.state_shape))).clone()
    cotangents = uniform(2, batch, *policy.control_shape).expand(SLOTS, *(-1,) * (1 + len(policy.control_shape)))
    controls, everyone = torch.zeros(SLOTS, batch, *policy.control_shape, **tensor_options()), slice(0, batch)
    trace = traced(policy, states, controls)
    n, m = math.prod(policy.state_shape), math.prod(policy.control_shape)
    jacobian, pulled = states.new_zeros(SLOTS, batch, m, n), torch.zeros_like(states)
    for slot in range(SLOTS):
        at = slice(slot, slot + 1)
        trace.linearise(slot, slot + 1, states[at], everyone, jacobian[at])
        pulled[slot] = trace.pull_back_state(slot, states[slot], cotangents[slot].contiguous(), everyone)
    for found in (controls, jacobian, pulled):
        assert torch.equal(found, found[:1].expand_as(found))
        assert found.any()

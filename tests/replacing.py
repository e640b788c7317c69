"""Policies of every kind around one system, and all the ways to put other parameters into them."""

from typing import Any

import torch
from conftest import StepCost, tensor_options, uniform
from torch import nn
from torch.nn.utils import vector_to_parameters

from engine import FULL, POLICY_ONLY, LinearSystem, Rollout
from policies import MLP, Linear, ModulePolicy, Polynomial

N, ROWS, STEPS = 4, 3, 5
COST = StepCost(lambda x, u, t: x.square().sum(1) + u.square().sum(1), lambda x: x.square().sum(1))


def module() -> Any:
    layers = [nn.Linear(N, 6), nn.Tanh(), nn.Linear(6, N)]
    net = nn.Sequential(*layers).to(**tensor_options())
    for index, parameter in enumerate(net.parameters()):
        parameter.data.copy_(uniform(index, *parameter.shape, low=-0.5, high=0.5))
    return net


SHIPPED = {
    "mlp": lambda members: MLP((N,), (N,), (7, 6), members=members, **tensor_options()),
    "linear": lambda members: Linear((N,), (N,), members=members, **tensor_options()),
    "polynomial": lambda members: Polynomial((N,), members=members, **tensor_options()),
}
KINDS = {
    **{f"{members} {name}": (lambda b=build, p=members: b(p)) for name, build in SHIPPED.items() for members in (1, 2)},
    "module": lambda: ModulePolicy(module(), (N,), (N,)),
}


def filled(policy, seed=0) -> Any:
    policy.theta.data.copy_(uniform(seed, *policy.theta.shape, low=-0.5, high=0.5))
    return policy


def found_with(policy, system, segment=None):
    """States, controls and gradient of a fresh rollout."""
    rollout = Rollout(system, policy, STEPS, ROWS * policy.members, segment=segment)
    return found_by(rollout)


def found_by(rollout):
    rollout.forward(uniform(9, rollout.batch, N))
    controls = rollout.controls.clone()
    return controls, rollout.backward([FULL, POLICY_ONLY], COST).parameters


def assert_equal(one, other):
    assert torch.equal(one[0], other[0])
    for rule in one[1]:
        assert torch.equal(one[1][rule], other[1][rule])


def a_system():
    A = 0.9 * torch.eye(N) + 0.1 * torch.ones(N, N).triu(1)
    return LinearSystem(A.tolist(), torch.eye(N).tolist())


def replace_data(policy, theta):
    policy.theta.data = theta


def replace_parameter(policy, theta):
    policy.theta = nn.Parameter(theta)


def load(policy, theta):
    policy.load_state_dict({"theta": theta})


def load_by_assignment(policy, theta):
    policy.load_state_dict({"theta": theta}, assign=True)


def from_vector(policy, theta):
    vector_to_parameters(theta.flatten(), policy.parameters())


def strided(policy, theta):
    policy.theta.data = theta.repeat_interleave(2, 1)[:, ::2]


def share(policy, theta):
    policy.share_memory()
    policy.theta.data.copy_(theta)


def there_and_back(policy, theta):
    policy.theta.data.copy_(theta)
    policy.to(torch.float64).to(theta.dtype)


REPLACED = [replace_data, replace_parameter, load, load_by_assignment, from_vector, strided, share, there_and_back]

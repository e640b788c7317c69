"""Parameters that are replaced, changed or copied around a rollout."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from replacing import (
    COST,
    KINDS,
    REPLACED,
    ROWS,
    SHIPPED,
    STEPS,
    N,
    a_system,
    assert_equal,
    filled,
    found_by,
    found_with,
    module,
    replace_data,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, vector_to_parameters

from engine import FULL, Rollout, Trajectory
from policies import ModulePolicy, PolicyError


@pytest.fixture(scope="module")
def system():
    return a_system()


@pytest.mark.parametrize("replace", REPLACED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_parameters_replaced_after_the_rollout_was_built_count_from_the_next_rollout(build, replace, system):
    policy = filled(build())
    theta = uniform(5, *policy.theta.shape, low=-0.5, high=0.5)
    rollout = Rollout(system, policy, STEPS, ROWS * policy.members)
    evaluation = Trajectory(system, policy, STEPS, ROWS * policy.members, forward_only=True)
    found_by(rollout)
    replace(policy, theta.clone())
    found, expected = found_by(rollout), found_with(filled(build(), 5), system)
    assert_equal(found, expected)
    evaluation.forward(uniform(9, rollout.batch, N))
    assert torch.equal(evaluation.controls, expected[0])
    assert torch.equal(policy.theta, theta)


def weight(net, new):
    net[0].weight = nn.Parameter(new[0].weight.detach().clone())
    net[0].bias = nn.Parameter(new[0].bias.detach().clone())
    net[2] = copy.deepcopy(new[2])


def weights_data(net, new):
    for parameter, other in zip(net.parameters(), new.parameters(), strict=True):
        parameter.data = other.data.clone()


def load_module(net, new):
    net.load_state_dict(new.state_dict())


def assign_module(net, new):
    net.load_state_dict(copy.deepcopy(new.state_dict()), assign=True)


def vector_to_module(net, new):
    vector_to_parameters(nn.utils.parameters_to_vector(new.parameters()).detach(), net.parameters())


def transposed(net, new):
    load_module(net, new)
    net[0].weight.data = net[0].weight.data.t().contiguous().t()


def there_and_back_module(net, new):
    load_module(net, new)
    net.double().to(new[0].weight.dtype)


OF_MODULE = [weight, weights_data, load_module, assign_module, vector_to_module, transposed, there_and_back_module]


@pytest.mark.parametrize("replace", OF_MODULE, ids=lambda one: one.__name__)
def test_a_modules_parameters_replaced_after_the_rollout_was_built_count_from_the_next_rollout(replace, system):
    net, new = module(), module()
    for index, parameter in enumerate(new.parameters()):
        parameter.data.copy_(uniform(20 + index, *parameter.shape, low=-0.5, high=0.5))
    policy = ModulePolicy(net, (N,), (N,))
    rollout = Rollout(system, policy, STEPS, ROWS)
    found_by(rollout)
    replace(net, new)
    assert_equal(found_by(rollout), found_with(ModulePolicy(new, (N,), (N,)), system))
    state = uniform(3, 1, ROWS, N)
    assert torch.equal(policy(state)[0], net(state[0]))
    # Both are one again: what is written to the one is there in the other.
    with torch.no_grad():
        policy.theta.mul_(0.5)
        assert torch.equal(net(state[0]), policy(state)[0])
        net[0].weight.zero_()
    assert not policy.theta[0, : net[0].weight.numel()].any()


def test_a_module_called_between_shows_what_was_replaced():
    net, state = module(), uniform(3, 1, ROWS, N)
    policy = ModulePolicy(net, (N,), (N,))
    net[0] = copy.deepcopy(net[0])
    net[0].weight.data.mul_(2.0)
    expected = net(state[0])
    assert torch.equal(policy(state)[0], expected)
    policy.theta.data = policy.theta.data * 0.5
    assert relative_error(policy(state)[0].detach(), expected.detach()) > 1e-3
    assert torch.equal(policy(state)[0], net(state[0]))


def both(policy, net):
    policy.theta.data = policy.theta.data.clone()
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())


def another_size(policy, net):
    net[0] = nn.Linear(N, 9, **tensor_options())
    net[2] = nn.Linear(9, N, **tensor_options())


UNFOLLOWED = {
    "both sides": (both, "Expected policy.theta or parameters of its module to be replaced, got both"),
    "another size": (another_size, "got others at 0.bias, 0.weight"),
    "a parametrisation": (lambda policy, net: parametrizations.weight_norm(net[0]), "got others at 0.parametrizations"),
    "pruning": (lambda policy, net: prune.l1_unstructured(net[0], "weight", 0.5), "got others at 0.weight"),
    "half precision": (lambda policy, net: policy.half(), "Expected parameters of shape .* as torch.float"),
    "a module in half": (lambda policy, net: net.half(), "Expected parameters of shape .* as torch.float"),
    "one layer in half": (lambda policy, net: net[0].half(), "Expected parameters of one dtype on one device"),
    "bfloat16": (
        lambda policy, net: policy.to(torch.bfloat16),
        "Expected parameters of shape .* as torch.bfloat16|got",
    ),
    "other members": (
        lambda policy, net: replace_data(policy, policy.theta.data.repeat(2, 1)),
        "Expected policy.theta",
    ),
    "fewer parameters": (lambda policy, net: replace_data(policy, policy.theta.data[:, 1:]), "Expected policy.theta"),
    "flat": (lambda policy, net: replace_data(policy, policy.theta.data[0]), "Expected policy.theta to be an"),
    "removed": (lambda policy, net: delattr(policy, "theta"), "Expected policy.theta to be an nn.Parameter"),
    "pruned theta": (lambda policy, net: prune.random_unstructured(policy, "theta", 0.5), "policy.theta to be an nn.P"),
    "parametrised theta": (
        lambda policy, net: parametrize.register_parametrization(policy, "theta", nn.Identity()),
        "policy.theta to be an nn.Parameter",
    ),
    "tied by memory": (
        lambda policy, net: setattr(net[2].weight, "data", net[0].weight.data.view(N, 6)),
        "Expected parameters in memory of their own, got 0.weight and 2.weight in the same",
    ),
}


@pytest.mark.float64
@pytest.mark.parametrize(("change", "message"), UNFOLLOWED.values(), ids=UNFOLLOWED)
def test_what_a_rollout_cannot_follow_is_refused(change, message, system):
    net = module()
    policy = ModulePolicy(net, (N,), (N,))
    rollout = Rollout(system, policy, STEPS, ROWS)
    rollout.forward(uniform(9, ROWS, N))
    change(policy, net)
    with pytest.raises(PolicyError, match=message):
        rollout.forward(uniform(9, ROWS, N))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.half(), r"as torch.float64 on cpu, as when the rollout was built, got .* torch.float16"),
        (lambda policy: replace_data(policy, policy.theta.data[:, :-1]), "Expected parameters of shape"),
        (lambda policy: replace_data(policy, policy.theta.data.repeat(2, 1)), "Expected parameters of shape"),
        (lambda policy: policy.to("meta"), "on meta"),
        (lambda policy: policy.register_forward_hook(lambda *parts: 2 * parts[2]), "MLPTrace to act as"),
        (lambda policy: prune.random_unstructured(policy, "theta", 0.5), "policy.theta to be an nn.Parameter"),
    ],
    ids=["half", "fewer", "members", "meta", "hook", "pruned"],
)
def test_what_a_shipped_policys_rollout_cannot_follow_is_refused(change, message, system):
    policy = filled(SHIPPED["mlp"](1))
    rollout = Rollout(system, policy, STEPS, ROWS)
    rollout.forward(uniform(9, ROWS, N))
    change(policy)
    with pytest.raises(PolicyError, match=message):
        rollout.forward(uniform(9, ROWS, N))


NORMED = {
    "weight norm": lambda net: (parametrizations.weight_norm(net[0]), net)[1],
    "old weight norm": lambda net: (nn.utils.weight_norm(net[0]), net)[1],
    "orthogonal": lambda net: (parametrizations.orthogonal(net[2], orthogonal_map="cayley"), net)[1],
    "spectral norm": lambda net: (parametrizations.spectral_norm(net[0]), net.eval())[1],
    "pruned": lambda net: (prune.l1_unstructured(net[0], "weight", 0.5), net)[1],
}


@pytest.mark.float64
@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("change", NORMED.values(), ids=NORMED)
def test_parametrised_modules_have_the_gradient_of_central_differences(change, system):
    policy = ModulePolicy(change(module()), (N,), (N,))
    rollout = Rollout(system, policy, STEPS, ROWS)
    _, gradients = found_by(rollout)
    direction, step = uniform(30, *policy.theta.shape), 1e-6
    losses = []
    for sign in (1.0, -1.0):
        policy.theta.data.add_(sign * step * direction)
        losses.append(rollout.forward(uniform(9, ROWS, N), COST).mean())
        policy.theta.data.sub_(sign * step * direction)
    slope = (losses[0] - losses[1]) / (2 * step)
    assert relative_error((gradients[FULL] * direction).sum(), slope) < 1e-7


@pytest.mark.float64
def test_a_module_that_measures_its_norm_while_it_acts_is_refused(system):
    net = module()
    parametrizations.spectral_norm(net[0])
    with pytest.raises(PolicyError, match=r"changes buffer '0.parametrizations.weight.0"):
        Rollout(system, ModulePolicy(net, (N,), (N,)), STEPS, ROWS)


# ---- copies


def pickled(policy):
    return pickle.loads(pickle.dumps(policy))


def saved(policy):
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("replaced", [False, True], ids=["as built", "after a replacement"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved], ids=lambda one: one.__name__)
@pytest.mark.parametrize("build", [KINDS["2 mlp"], KINDS["module"]], ids=["mlp", "module"])
def test_copies_are_whole_and_independent(build, duplicate, replaced, system):
    policy = filled(build())
    if replaced:
        replace_data(policy, policy.theta.data * 0.5)
    expected = found_with(policy, system)
    if replaced and isinstance(policy, ModulePolicy):
        policy._module[0][0].weight = nn.Parameter(policy._module[0][0].weight.detach() * 2.0)
        expected = found_with(copy.deepcopy(policy), system)
    other = duplicate(policy)
    assert_equal(found_with(other, system), expected)
    before, others = policy.theta.detach().clone(), other.theta.detach().clone()
    assert torch.equal(before, others)
    other.theta.data.mul_(0.5)
    assert torch.equal(policy.theta, before)
    assert_equal(found_with(policy, system), expected)
    policy.theta.data.zero_()
    assert torch.equal(other.theta, 0.5 * others)
    if isinstance(policy, ModulePolicy):
        state = uniform(3, 1, ROWS, N)
        for one in (policy, other):
            assert torch.equal(one(state)[0], one._module[0](state[0]))


# ---- modules that cannot be policies


def sharing_memory():
    net = module()
    net[2].weight = nn.Parameter(net[0].weight.data.view(4, 6))
    return net


def mixed(parameter):
    net = module()
    net.other = parameter
    return net


@pytest.mark.float64
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(N, N, dtype=torch.complex128), "Expected real parameters in memory, got torch.complex128"),
        (lambda: nn.Linear(N, N, device="meta"), "Expected real parameters in memory, got torch.float32 on meta"),
        (lambda: nn.LazyLinear(N), "call the lazy module once"),
        (lambda: mixed(nn.Parameter(torch.zeros(3, dtype=torch.int64), False)), "Expected parameters of one dtype"),
        (lambda: mixed(nn.Parameter(torch.zeros(3, dtype=torch.complex128))), "Expected parameters of one dtype"),
        (sharing_memory, "Expected parameters in memory of their own, got 0.weight and 2.weight in the same"),
    ],
    ids=["complex", "meta", "lazy", "with integers", "with complex", "shared memory"],
)
def test_parameters_that_cannot_be_trained_together_are_refused(build, message):
    with pytest.raises(PolicyError, match=message):
        ModulePolicy(build(), (N,), (N,))


@pytest.mark.float64
def test_tied_weights_stay_tied_when_they_are_replaced(system):
    net: Any = nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N)).double()
    net[2].weight = net[0].weight
    policy = ModulePolicy(net, (N,), (N,))
    rollout = Rollout(system, policy, STEPS, ROWS)
    found_by(rollout)
    net[0].weight.data = uniform(8, N, N)
    expected: Any = nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N)).double()
    expected[2].weight = expected[0].weight
    expected.load_state_dict(net.state_dict())
    assert_equal(found_by(rollout), found_with(ModulePolicy(expected, (N,), (N,)), system))
    assert net[0].weight is net[2].weight
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())  # no longer tied
    with pytest.raises(PolicyError, match=r"got others at 2.weight"):
        rollout.forward(uniform(9, ROWS, N))

"""Policies: what they compute, how they start, and their traces against torch autograd."""

import math

import pytest
import torch
from conftest import tensor_options, uniform
from torch import nn
from traces import check_trace

from policies import MLP, Linear, ModulePolicy, PolicyError, Polynomial

STATES = 3
SLOTS = 4
ROWS = 5
"""Samples of one member."""


def random_mlp(controls, hidden, members):
    policy = MLP((STATES,), (controls,), hidden, members=members, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    return policy


def small_module(controls=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(STATES, 5), nn.Tanh(), nn.Linear(5, controls)).to(**tensor_options())


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 6), (7, 6, 5)], ids=lambda hidden: f"hidden {list(hidden)}")
@pytest.mark.parametrize("controls", [1, 2, 3, 4, 5])
def test_mlp_trace_equals_autograd(controls, hidden, members):
    check_trace(random_mlp(controls, hidden, members), SLOTS, ROWS, 1, SLOTS, slice(0, members))


@pytest.mark.parametrize("members", [slice(0, 1), slice(1, 2), slice(1, 3)], ids=lambda s: f"{s.start} to {s.stop}")
@pytest.mark.parametrize("hidden", [(), (7, 6)], ids=lambda hidden: f"hidden {list(hidden)}")
@pytest.mark.parametrize("controls", [1, 2, 5])
def test_mlp_trace_of_some_members_equals_autograd(controls, hidden, members):
    check_trace(random_mlp(controls, hidden, 3), SLOTS, ROWS, 1, SLOTS, members)


def test_mlp_trace_pulls_back_members_that_it_did_not_linearise():
    policy, states = random_mlp(2, (7, 6), 3), uniform(1, SLOTS, 3 * ROWS, STATES)
    cotangents, everyone = uniform(2, SLOTS, 3 * ROWS, 2), slice(0, 3 * ROWS)
    trace, given = policy.trace(SLOTS, 3 * ROWS, (STATES,), (2,)), torch.zeros_like(cotangents)
    for slot in range(SLOTS):
        trace.prepare_act(slot, states[slot], given[slot])()
    found = []
    for linearised in (everyone, slice(ROWS, 2 * ROWS)):
        trace.linearise(0, SLOTS, states, linearised, uniform(3, SLOTS, 3 * ROWS, 2, STATES))
        found.append(torch.zeros_like(policy.theta))
        trace.pull_back_parameters(0, SLOTS, states, cotangents, everyone, found[-1])
    torch.testing.assert_close(found[0], found[1])


def test_mlp_is_the_chain_of_its_layers():
    policy, state = random_mlp(2, (7, 6), 2), uniform(1, 2, ROWS, STATES)
    control = policy(state)
    for member in range(2):
        activation, flat = state[member], policy.theta[member].detach()
        for inputs, outputs in ((STATES, 7), (7, 6), (6, 2)):
            layer, flat = flat[: (inputs + 1) * outputs].view(inputs + 1, outputs), flat[(inputs + 1) * outputs :]
            activation = activation @ layer[:-1] + layer[-1]
            activation = activation.tanh() if outputs > 2 else activation
        assert len(flat) == 0
        torch.testing.assert_close(control[member], activation)


def test_linear_is_an_affine_map():
    policy, state = Linear((STATES,), (2,), members=2, **tensor_options()), uniform(1, 2, ROWS, STATES)
    policy.theta.data.copy_(uniform(0, 2, 8))
    for member, row in enumerate(policy.theta.detach()):
        torch.testing.assert_close(policy(state)[member], state[member] @ row[:6].view(STATES, 2) + row[6:])


def test_polynomial_is_its_formula():
    policy, state = Polynomial((2,), members=3, **tensor_options()), uniform(1, 3, ROWS, 2)
    policy.theta.data.copy_(uniform(0, 3, 2))
    for member, (square, linear) in enumerate(policy.theta.tolist()):
        torch.testing.assert_close(policy(state)[member], square * state[member] ** 2 + linear * state[member])


@pytest.mark.float64
@pytest.mark.parametrize("kind", [MLP, Linear])
def test_states_and_controls_of_any_shape_are_flattened_at_the_ends(kind):
    policy = kind((2, 3), (4, 1), members=2, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    state = uniform(1, 2, ROWS, 2, 3)
    flat = kind((6,), (4,), members=2, **tensor_options())
    flat.theta.data.copy_(policy.theta)
    assert policy(state).shape == (2, ROWS, 4, 1)
    assert torch.equal(policy(state).flatten(2), flat(state.flatten(2)))


@pytest.mark.float64
def test_module_computes_and_is_trained_through_the_policys_parameters():
    module, state = small_module(), uniform(1, ROWS, STATES)
    before = module(state)
    policy = ModulePolicy(module, (STATES,), (2,))
    assert policy.theta.shape == (1, sum(parameter.numel() for parameter in module.parameters()))
    assert torch.equal(module(state), before)
    assert torch.equal(policy(state.unsqueeze(0))[0], before)
    with torch.no_grad():
        policy.theta.zero_()
        assert not policy(state.unsqueeze(0)).any()
    assert not module(state).any()
    assert [name for name, _ in policy.named_parameters()] == ["theta"]


@pytest.mark.float64
def test_weights_start_uniform_between_the_bounds_of_glorot_and_biases_at_zero():
    policy = MLP((50,), (20,), (40, 30), dtype=torch.float64)
    policy.theta.data.fill_(9.0)
    policy.initialise(0, torch.Generator().manual_seed(0))
    for layer, (inputs, outputs) in zip(policy.layers(policy.theta), ((50, 40), (40, 30), (30, 20)), strict=True):
        weights, limit = layer[0, :-1], math.sqrt(6 / (inputs + outputs))
        assert 0.99 * limit < weights.abs().max() <= limit
        # The mean of n uniform numbers has standard deviation limit/√(3n); their variance is limit²/3.
        assert abs(weights.mean()) < 4 * limit / math.sqrt(3 * weights.numel())
        assert 0.9 < weights.var() / (limit**2 / 3) < 1.1
        assert not layer[0, -1].any()


@pytest.mark.float64
def test_linear_weights_start_between_the_bounds_of_glorot():
    policy = Linear((50,), (40,), dtype=torch.float64)
    policy.initialise(0, torch.Generator().manual_seed(0))
    limit = math.sqrt(6 / 90)
    assert 0.99 * limit < policy.theta.abs().max() <= limit
    assert not policy.theta[0, 2000:].any()


@pytest.mark.float64
def test_a_last_layer_of_zeros_gives_zero_controls_and_leaves_the_other_layers_alone():
    zero, free = (MLP((STATES,), (2,), zero_last=flag, **tensor_options()) for flag in (True, False))
    linear = Linear((STATES,), (2,), zero_last=True, **tensor_options())
    for policy in (zero, free, linear):
        policy.initialise(0, torch.Generator().manual_seed(0))
    state = uniform(1, 1, ROWS, STATES)
    assert not zero(state).any()
    assert not linear(state).any()
    assert free(state).any()
    layers = list(zip(zero.layers(zero.theta), free.layers(free.theta), strict=True))
    assert all(torch.equal(one, other) for one, other in layers[:-1])


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, state):
        return (self.gain * state).sum(1)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LSTM(3, 2), "Expected a policy without memory, got LSTM at"),
        (nn.Sequential(nn.Linear(3, 3), nn.GRUCell(3, 2)), "Expected a policy without memory, got GRUCell at"),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), "got Dropout at '1' in training mode; call .eval() on it"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "got BatchNorm1d at '1' in training mode"),
        (nn.Tanh(), "Expected a module with parameters to train, got Tanh without any."),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).double()), "Expected parameters of one dtype on one device"),
    ],
    ids=["LSTM", "GRU cell", "dropout", "batch norm", "no parameters", "two dtypes"],
)
def test_modules_that_are_no_policies_are_refused(module, message):
    with pytest.raises(PolicyError) as error:
        ModulePolicy(module, (3,), (2,))
    assert message in str(error.value)


@pytest.mark.float64
def test_dropout_that_is_switched_off_is_welcome():
    module = nn.Sequential(nn.Linear(STATES, 2), nn.Dropout(0.5)).double().eval()
    policy = ModulePolicy(module, (STATES,), (2,))
    state = uniform(1, 1, ROWS, STATES)
    assert torch.equal(policy(state)[0], module[0](state[0]))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((3,), (2,), members=0), "Expected a policy with at least 1 member, got 0."),
        (lambda: MLP((3,), (2,), (8, 0)), "Expected hidden layers of at least 1 unit, got [8, 0]."),
        (
            lambda: MLP((4,), (2,)).trace(1, 1, (3,), (2,)),
            "Expected a policy for states of shape [3], got one for [4].",
        ),
        (lambda: MLP((3,), (1,)).trace(1, 1, (3,), (2,)), "Expected policy output of shape [1, 1, 2] (members, batch"),
        (
            lambda: ModulePolicy(Flat(), (3,), (1,)).trace(1, 1, (3,), (1,)),
            "Expected policy output of shape [1, 1, 1] (members, batch, control), got [1, 1].",
        ),
    ],
    ids=["no members", "empty layer", "other states", "other controls", "flat output"],
)
def test_policies_that_do_not_fit_are_refused(build, message):
    with pytest.raises(PolicyError) as error:
        build()
    assert str(error.value).startswith(message)


@pytest.mark.float64
def test_predicted_bytes_of_a_trace_are_those_of_its_buffers():
    policy, batch = random_mlp(2, (7, 6), 2), 2 * ROWS
    trace = policy.trace(SLOTS, batch, (STATES,), (2,))
    kept = [*trace.augmented, *(slope for slopes in trace.slopes for slope in slopes)]
    storages = {buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes() for buffer in kept}
    assert policy.trace_bytes(batch, (STATES,), (2,)) * SLOTS == sum(storages.values())


@pytest.mark.float64
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("controls", [1, 3, 6])
def test_predicted_scratch_of_an_mlp_covers_what_its_trace_uses(controls, members):
    policy, batch = random_mlp(controls, (7, 16, 9), members), members * ROWS
    trace, everyone = policy.trace(SLOTS, batch, (STATES,), (controls,)), slice(0, batch)
    states, cotangents = uniform(1, SLOTS, batch, STATES), uniform(2, SLOTS, batch, controls)
    for slot in range(SLOTS):
        trace.prepare_act(slot, states[slot], torch.zeros_like(cotangents[slot]))()
    for jacobian in (uniform(3, SLOTS, batch, controls, STATES), None):
        trace.linearise(0, SLOTS, states, everyone, jacobian)
        trace.pull_back_state(0, states[0], cotangents[0], everyone)
        trace.pull_back_parameters(0, SLOTS, states, cotangents, everyone, torch.zeros_like(policy.theta))
    of_rows = {name: buffer for name, buffer in trace._scratch.items() if not name.startswith("weights")}
    used, predicted = sum(buffer.numel() * 8 for buffer in of_rows.values()), policy.scratch_bytes(SLOTS * batch)
    assert predicted / 3 < used <= predicted

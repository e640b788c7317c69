"""The convolutional policy: torch's own convolution forward, autograd as the oracle of its hand-written trace."""

import math

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from torch.nn import functional

import engine
from policies import Convolutional, PolicyError
from policies.policy import AutogradTrace

SLOTS, ROWS, CHANNELS, POINTS = 5, 3, 2, 17


def accuracy():
    return 1e-12 if engine.current().precision == "float64" else 2e-5


def random_policy(members, controls=1, filters=(6, 5), width=3, stride=2):
    policy = Convolutional((CHANNELS, POINTS), (controls,), filters, width, stride, members=members, **tensor_options())
    policy.theta.data.copy_(0.5 * uniform(0, *policy.theta.shape))
    return policy


@pytest.mark.parametrize(("width", "stride"), [(3, 2), (3, 1), (2, 3), (5, 2)])
def test_forward_is_torchs_convolution(width, stride):
    policy = random_policy(2, 3, (6, 5), width, stride)
    states = uniform(1, 2, ROWS, CHANNELS, POINTS)
    found = policy(states)
    for member in range(2):
        signal = states[member]
        *convolutions, last = policy.layers(policy.theta.detach())
        for layer in convolutions:
            kernel = layer[member, :-1].unflatten(0, (width, -1)).permute(2, 1, 0)
            signal = torch.tanh(functional.conv1d(signal, kernel, layer[member, -1], stride))
        expected = signal.transpose(1, 2).flatten(1) @ last[member, :-1] + last[member, -1]
        torch.testing.assert_close(found[member], expected)


def both_traces(policy):
    """Our trace and autograd's after acting on the same random states, with those states."""
    batch = policy.members * ROWS
    shape = (CHANNELS, POINTS)
    ours = policy.trace(SLOTS, batch, shape, policy.control_shape)
    theirs = AutogradTrace(policy, batch)
    states = uniform(2, SLOTS, batch, *shape)
    controls = [torch.zeros(SLOTS, batch, *policy.control_shape, **tensor_options()) for _ in range(2)]
    for trace, control in zip((ours, theirs), controls, strict=True):
        with torch.inference_mode():
            for slot in range(SLOTS):
                trace.prepare_act(slot, states[slot], control[slot])()
    torch.testing.assert_close(*controls)
    return ours, theirs, states


GEOMETRIES = {
    "as in the paper": ((6, 5), 3, 2),
    "one layer": ((6,), 3, 2),
    "three layers": ((4, 5, 3), 3, 2),
    "stride 1": ((6, 5), 3, 1),
    "wide": ((6, 5), 5, 2),
    "gaps": ((6, 5), 2, 3),
    "points": ((6, 5), 1, 1),
}


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("controls", [1, 2])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_derivatives_equal_autograd(members, controls, geometry):
    policy = random_policy(members, controls, *geometry)
    ours, theirs, states = both_traces(policy)
    batch = members * ROWS
    cotangents = uniform(3, SLOTS, batch, controls)
    for samples in (slice(0, batch), slice(batch - ROWS, batch)):
        found, expected = (
            (
                torch.zeros(SLOTS, batch, controls, CHANNELS * POINTS, **tensor_options()),
                torch.zeros_like(policy.theta.data),
            )
            for _ in range(2)
        )
        for trace, (jacobian, gradient) in zip((ours, theirs), (found, expected), strict=True):
            with torch.inference_mode():
                trace.linearise(0, SLOTS, states, samples, jacobian)
                trace.pull_back_parameters(0, SLOTS, states, cotangents, samples, gradient)
        assert relative_error(found[0][:, samples], expected[0][:, samples]) < accuracy()
        assert relative_error(found[1], expected[1]) < accuracy()
        with torch.inference_mode():
            pulled = [
                trace.pull_back_state(2, states[2, samples], cotangents[2, samples], samples)
                for trace in (ours, theirs)
            ]
        assert relative_error(*pulled) < accuracy()


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("value", [0.7, math.nan], ids=["other", "not a number"])
def test_a_row_of_K_depends_on_its_own_state_alone_to_the_bit(members, value):
    policy = random_policy(members)
    ours, _, states = both_traces(policy)
    control = torch.zeros(members * ROWS, 1, **tensor_options())
    found = []
    for state in (states[2], states[2].clone().index_fill_(0, torch.tensor([1], device=states.device), value)):
        jacobian = torch.zeros(SLOTS, members * ROWS, 1, CHANNELS * POINTS, **tensor_options())
        with torch.inference_mode():
            ours.prepare_act(2, state, control)()
            ours.linearise(0, SLOTS, states, slice(0, members * ROWS), jacobian)
        found.append((jacobian, control.clone()))
    (before, acted), (after, reacted) = found
    assert not torch.equal(before[2, 1], after[2, 1])
    after[2, 1], reacted[1] = before[2, 1], acted[1]
    assert torch.equal(before, after)
    assert torch.equal(acted, reacted)


def test_parameters_are_pulled_back_without_a_linearisation_too():
    policy = random_policy(2)
    ours, theirs, states = both_traces(policy)
    cotangents, chosen = uniform(3, SLOTS, 2 * ROWS, 1), slice(ROWS, 2 * ROWS)
    gradients = []
    for trace in (ours, theirs):
        gradients.append(torch.zeros_like(policy.theta.data))
        with torch.inference_mode():
            trace.pull_back_parameters(1, 4, states[1:4], cotangents[1:4], chosen, gradients[-1])
    assert relative_error(*gradients) < accuracy()
    assert not gradients[0][0].any()


def test_members_that_were_not_linearised_are_pulled_back_too():
    policy = random_policy(3)
    ours, _, states = both_traces(policy)
    cotangents, everyone = uniform(3, SLOTS, 3 * ROWS, 1), slice(0, 3 * ROWS)
    found = []
    for linearised in (everyone, slice(ROWS, 2 * ROWS)):
        with torch.inference_mode():
            ours.linearise(0, SLOTS, states, linearised, None)
            found.append(torch.zeros_like(policy.theta))
            ours.pull_back_parameters(0, SLOTS, states, cotangents, everyone, found[-1])
        for slope in ours.slopes:
            slope[0] = math.nan  # what was kept of others may be stale
    assert relative_error(found[1], found[0]) < accuracy()


@pytest.mark.float64
def test_predicted_bytes_are_those_of_the_buffers():
    policy = random_policy(2)
    trace = policy.trace(SLOTS, 2 * ROWS, (CHANNELS, POINTS), (1,))
    buffers = [trace.memory, *trace.slopes]
    predicted = policy.trace_bytes(2 * ROWS, (CHANNELS, POINTS), (1,)) * SLOTS
    assert predicted == sum(buffer.untyped_storage().nbytes() for buffer in buffers)


@pytest.mark.float64
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("controls", [1, 2])
def test_scratch_is_no_more_than_predicted(members, controls):
    policy = random_policy(members, controls)
    trace, _, states = both_traces(policy)
    everyone, cotangents = slice(0, members * ROWS), uniform(3, SLOTS, members * ROWS, controls)
    jacobian = torch.zeros(SLOTS, members * ROWS, controls, CHANNELS * POINTS, **tensor_options())
    with torch.inference_mode():
        for held in (jacobian, None):
            trace.pull_back_parameters(0, SLOTS, states, cotangents, everyone, torch.zeros_like(policy.theta))
            trace.linearise(0, SLOTS, states, everyone, held)
    taken = sum(buffer.numel() * buffer.element_size() for buffer in trace._scratch.values())
    assert taken <= policy.scratch_bytes(SLOTS * members * ROWS) < 2 * taken


@pytest.mark.float64
def test_weights_start_glorot_uniform_and_biases_at_zero():
    policy = Convolutional((2, 32), (1,), dtype=torch.float64)
    policy.initialise(0, torch.Generator().manual_seed(0))
    limits = [(6 / (6 + 360)) ** 0.5, (6 / (180 + 180)) ** 0.5, (6 / 421) ** 0.5]
    for layer, limit in zip(policy.layers(policy.theta.detach()), limits, strict=True):
        assert 0.95 * limit < layer[0, :-1].abs().max() <= limit
        assert not layer[0, -1].any()
    assert policy.parameter_count == 7 * 60 + 181 * 60 + 421


@pytest.mark.float64
def test_the_last_layer_may_start_at_zero():
    policy = Convolutional((2, 32), (1,), zero_last=True, dtype=torch.float64)
    policy.initialise(0, torch.Generator().manual_seed(0))
    assert not policy(uniform(0, 1, 4, 2, 32)).any()
    assert policy.theta.any()


@pytest.mark.float64
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_shape": (4,)}, "states .channels, points. for convolutions, got shape .4."),
        ({"state_shape": (2, 4)}, "at least 3 places before every convolution, got 1 after 1 of 2 from 4 points"),
        ({"filters": ()}, "filters, width and stride of at least 1"),
        ({"stride": 0}, "filters, width and stride of at least 1"),
    ],
)
def test_grids_that_do_not_fit_are_refused(options, message):
    with pytest.raises(PolicyError, match=f"^Expected {message}"):
        Convolutional(**({"state_shape": (2, 32), "control_shape": (1,)} | options))

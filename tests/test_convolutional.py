"""The convolutional policy: torch's own convolution forward, autograd as the oracle of its hand-written record."""

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from torch.nn import functional

import engine
from policies import Convolutional, PolicyError
from policies.policy import AutogradRecord

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


def both_records(policy):
    """Our record and autograd's after acting on the same random states, with those states."""
    batch = policy.members * ROWS
    shape = (CHANNELS, POINTS)
    ours = policy.record(SLOTS, batch, shape, policy.control_shape)
    theirs = AutogradRecord(policy, batch)
    states = uniform(2, SLOTS, batch, *shape)
    controls = [torch.zeros(SLOTS, batch, *policy.control_shape, **tensor_options()) for _ in range(2)]
    for record, control in zip((ours, theirs), controls, strict=True):
        with torch.inference_mode():
            for slot in range(SLOTS):
                record.prepare_act(slot, states[slot], control[slot])()
    torch.testing.assert_close(*controls)
    return ours, theirs, states


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("controls", [1, 2])
@pytest.mark.parametrize(("width", "stride"), [(3, 2), (2, 3)])
def test_derivatives_equal_autograd(members, controls, width, stride):
    policy = random_policy(members, controls, width=width, stride=stride)
    ours, theirs, states = both_records(policy)
    batch, everyone = members * ROWS, slice(0, members * ROWS)
    cotangents = uniform(3, SLOTS, batch, controls)
    found, expected = (
        (
            torch.zeros(SLOTS, batch, controls, CHANNELS * POINTS, **tensor_options()),
            torch.zeros_like(policy.theta.data),
        )
        for _ in range(2)
    )
    for record, (jacobian, gradient) in zip((ours, theirs), (found, expected), strict=True):
        with torch.inference_mode():
            record.linearise(0, SLOTS, states, everyone, jacobian)
            record.pull_back_parameters(0, SLOTS, states, cotangents, everyone, gradient)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < accuracy()
    with torch.inference_mode():
        pulled = [record.pull_back_state(2, states[2], cotangents[2], everyone) for record in (ours, theirs)]
    assert relative_error(*pulled) < accuracy()


def test_parameters_are_pulled_back_without_a_linearisation_too():
    policy = random_policy(2)
    ours, theirs, states = both_records(policy)
    cotangents, chosen = uniform(3, SLOTS, 2 * ROWS, 1), slice(ROWS, 2 * ROWS)
    gradients = []
    for record in (ours, theirs):
        gradients.append(torch.zeros_like(policy.theta.data))
        with torch.inference_mode():
            record.pull_back_parameters(1, 4, states[1:4], cotangents[1:4],
                                        chosen, gradients[-1])  # fmt: skip
    assert relative_error(*gradients) < accuracy()
    assert not gradients[0][0].any()


@pytest.mark.float64
def test_predicted_bytes_are_those_of_the_buffers():
    policy = random_policy(2)
    record = policy.record(SLOTS, 2 * ROWS, (CHANNELS, POINTS), (1,))
    buffers = [*record.patches, *record.hidden, *record.slopes]
    predicted = policy.record_bytes(2 * ROWS, (CHANNELS, POINTS), (1,)) * SLOTS
    assert predicted == sum(buffer.numel() * buffer.element_size() for buffer in buffers)


@pytest.mark.float64
def test_weights_start_glorot_uniform_and_biases_at_zero():
    policy = Convolutional((2, 32), (1,), dtype=torch.float64)
    policy.initialise(0, torch.Generator().manual_seed(0))
    limits = [(6 / (6 + 180)) ** 0.5, (6 / (180 + 180)) ** 0.5, (6 / 421) ** 0.5]
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

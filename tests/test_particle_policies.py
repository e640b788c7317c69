"""Policies for particles: what they compute and what they are blind to."""

import math
from functools import partial

import pytest
import torch
from conftest import relative_error, tensor_options, uniform

import engine
from policies import DeepSets, Moments, PolicyError

ROWS = 4
"""Samples of one member."""
KINDS = {
    "moments": partial(Moments, quantiles=(0.0, 0.5, 1.0), hidden=(7, 6)),
    "moments without quantiles": partial(Moments, quantiles=(), hidden=(7,)),
    "deep sets": partial(DeepSets, features=(5, 6), hidden=(7,)),
}
ACTUATORS = pytest.mark.parametrize("actuators", [(0, 1, 2), (4, 0, 11)], ids=["first", "chosen"])
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def build(kind, particles=20, actuators=(0, 1), dim=2, members=2):
    """A policy with random parameters, none of them 0."""
    shapes = (2 * dim, particles), (dim, len(actuators))
    policy = KINDS[kind](*shapes, actuators=actuators, members=members, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    return policy


def accuracy():
    return 1e-12 if engine.current().precision == "float64" else 1e-4


@EVERY_KIND
@ACTUATORS
def test_the_order_of_the_crowd_does_not_matter(kind, actuators):
    policy, state = build(kind, actuators=actuators), uniform(1, 2, ROWS, 4, 20)
    crowd = [k for k in range(20) if k not in actuators]
    shuffled, other = state.clone(), state.clone()
    shuffled[..., crowd] = state[..., crowd[::-1]]
    assert relative_error(policy(shuffled), policy(state)) < accuracy()
    other[..., crowd[0]] += 1.0
    assert relative_error(policy(other), policy(state)) > 1e-3


@EVERY_KIND
@ACTUATORS
def test_controls_follow_the_order_of_the_actuators(kind, actuators):
    policy, state = build(kind, actuators=actuators), uniform(1, 2, ROWS, 4, 20)
    swapped = state.clone()
    swapped[..., list(actuators)] = state[..., list(actuators[::-1])]
    assert relative_error(policy(swapped), policy(state).flip(3)) < accuracy()


@EVERY_KIND
@ACTUATORS
def test_actuators_are_the_particles_that_they_are_said_to_be(kind, actuators):
    policy, state = build(kind, actuators=actuators), uniform(1, 2, ROWS, 4, 20)
    first = build(kind, actuators=(0, 1, 2))
    rest = [k for k in range(20) if k not in actuators]
    assert relative_error(policy(state), first(state[..., [*actuators, *rest]])) < accuracy()


@pytest.mark.float64
@pytest.mark.parametrize("dim", [2, 3])
def test_moments_are_their_formula(dim):
    policy = Moments((2 * dim, 20), (dim, 2), (0.0, 0.3, 1.0), (7,), members=2, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    state = uniform(1, 2, ROWS, 2 * dim, 20)
    own, crowd = state[..., :2], state[..., 2:]
    found, inputs = policy(state), 8 * dim + 3 * dim
    for member in range(2):
        first, second = policy.theta[member].split([(inputs + 1) * 7, 8 * dim])
        first, second = first.view(inputs + 1, 7), second.view(8, dim)
        for row in range(ROWS):
            herd = crowd[member, row]
            quantiles = torch.quantile(herd[:dim], torch.tensor([0.0, 0.3, 1.0], **tensor_options()), dim=1).T
            for a in range(2):
                me = own[member, row, :, a]
                features = torch.cat(
                    [
                        me,
                        own[member, row].mean(1) - me,
                        herd.mean(1) - me,
                        herd.std(1, correction=0),
                        (quantiles - me[:dim].unsqueeze(1)).flatten(),
                    ]
                )
                control = (features @ first[:-1] + first[-1]).tanh() @ second[:-1] + second[-1]
                torch.testing.assert_close(found[member, row, :, a], control)


@pytest.mark.float64
def test_deep_sets_are_their_formula():
    policy, state = build("deep sets"), uniform(1, 2, ROWS, 4, 20)
    sizes = [(4, 5), (5, 6), (4 + 4 + 6, 7), (7, 2)]
    for member in range(2):
        parts = policy.theta[member].split([(inputs + 1) * outputs for inputs, outputs in sizes])
        layers = [part.view(inputs + 1, outputs) for part, (inputs, outputs) in zip(parts, sizes, strict=True)]
        affine = lambda x, layer: x @ layer[:-1] + layer[-1]  # noqa: E731
        own, crowd = state[member, :, :, :2].mT, state[member, :, :, 2:].mT
        pooled = affine(affine(crowd, layers[0]).tanh(), layers[1]).mean(1, keepdim=True)
        features = torch.cat([own, own.mean(1, keepdim=True) - own, pooled.expand(-1, 2, -1)], dim=2)
        control = affine(affine(features, layers[2]).tanh(), layers[3])
        torch.testing.assert_close(policy(state)[member], control.mT)


@EVERY_KIND
@ACTUATORS
def test_a_policy_runs_with_other_particles_on_the_same_parameters(kind, actuators):
    policy, state = build(kind, actuators=actuators), uniform(1, 2, ROWS, 4, 20)
    crowd = [k for k in range(20) if k not in actuators]
    # Every particle of the crowd twice: the same means, spreads and extremes, and, of an odd number, the same median.
    doubled = torch.cat([state, state[..., crowd]], dim=3)
    larger = policy.resized(20 + len(crowd))
    assert larger.state_shape == (4, 20 + len(crowd))
    assert larger.theta is policy.theta
    assert relative_error(larger(doubled), policy(state)) < accuracy()
    # It is a policy of its own to those who check its shapes.
    larger.check_fit(larger.state_shape, larger.control_shape)
    few = policy.resized(13)
    few.check_fit((4, 13), few.control_shape)
    with torch.no_grad():
        policy.theta.add_(1.0)
    assert relative_error(few(state[..., :13]), policy.resized(13)(state[..., :13])) == 0.0


@EVERY_KIND
@pytest.mark.parametrize("crowd", [0, 1, 2, 15])
def test_a_small_or_coincident_crowd_has_finite_controls_and_gradients(kind, crowd):
    policy = build(kind, particles=2 + crowd)
    for state in (uniform(1, 2, ROWS, 4, 2 + crowd), torch.zeros(2, ROWS, 4, 2 + crowd, **tensor_options())):
        leaf = state.requires_grad_()
        control = policy(leaf)
        gradients = torch.autograd.grad(control.sum(), (leaf, policy.theta))
        assert all(tensor.isfinite().all() for tensor in (control, *gradients))


@EVERY_KIND
def test_initial_parameters_repeat_stay_within_the_limit_and_may_give_no_control(kind):
    policy = build(kind)
    policy.initialise(0, torch.Generator().manual_seed(3))
    policy.initialise(1, torch.Generator().manual_seed(3))
    assert torch.equal(policy.theta[0], policy.theta[1])
    policy.initialise(1, torch.Generator().manual_seed(4))
    assert not torch.equal(policy.theta[0], policy.theta[1])
    for layer in policy._head.of(policy.theta):
        limit = math.sqrt(6.0 / (layer.shape[1] - 1 + layer.shape[2]))
        assert 0.7 * limit < layer[:, :-1].abs().max() <= limit
        assert not layer[:, -1].any()
    state = uniform(1, 2, ROWS, 4, 20)
    assert policy(state).abs().min() > 0
    policy.zero_last = True
    policy.initialise(0, torch.Generator().manual_seed(3))
    assert not policy(state)[0].any()
    assert policy(state)[1].any()


@pytest.mark.float64
def test_a_policy_that_is_made_precise_is_as_one_that_was_built_so():
    policy = Moments((4, 7), (2, 2), quantiles=(0.1, 1 / 3), dtype=torch.float32)
    policy.initialise(0, torch.Generator().manual_seed(0))
    other = Moments((4, 7), (2, 2), quantiles=(0.1, 1 / 3), dtype=torch.float64)
    policy.double()
    other.theta.data.copy_(policy.theta.data)
    state = uniform(1, 1, 3, 4, 7)
    assert torch.equal(policy(state), other(state))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Moments((4,), (2, 2)), "states of particles, of shape [2·dim, N], got [4]"),
        (lambda: DeepSets((3, 9), (2, 2)), "states of particles, of shape [2·dim, N], got [3, 9]"),
        (lambda: Moments((4, 9), (4,)), "controls of actuators, of shape [rows, actuators], got [4]"),
        (lambda: Moments((4, 1), (2, 2)), "2 different actuators below 1, got [0, 1]"),
        (lambda: DeepSets((4, 9), (2, 2), actuators=(3, 3)), "2 different actuators below 9, got [3, 3]"),
        (lambda: DeepSets((4, 9), (2, 2), actuators=(3,)), "2 different actuators below 9, got [3]"),
        (lambda: Moments((4, 9), (2, 2), quantiles=(0.5, 1.5)), "quantiles from 0 to 1, got [0.5, 1.5]"),
        (lambda: Moments((4, 9), (2, 2), hidden=(0,)), "hidden layers of at least 1 unit, got [0]"),
        (lambda: DeepSets((4, 9), (2, 2), features=()), "at least 1 layer of features, got none"),
        (lambda: DeepSets((4, 9), (2, 2), actuators=(3, 5)).resized(5), "more than 5 particles, got 5"),
        (lambda: Moments((4, 9), (2, 2), members=0), "a policy with at least 1 member, got 0"),
        (lambda: Moments(4, 1), "a state shape of sizes of at least 1, such as (4,), got 4"),  # type: ignore[arg-type]
        (lambda: DeepSets((4, 9), (2, 2), dtype=torch.int64), "a dtype such as torch.float32, got torch.int64"),
    ],
)
def test_impossible_policies_are_refused(make, message):
    with pytest.raises(PolicyError) as refusal:
        make()
    assert str(refusal.value) == f"Expected {message}."

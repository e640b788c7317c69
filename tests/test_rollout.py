"""Rollouts: the gradients of every path rule against the oracle, differences and closed forms; what is refused."""

from functools import partial
from itertools import pairwise

import pytest
import reference
import torch
from conftest import BySteps, StepCost, relative_error, swing_up_states, tensor_options, uniform

import engine
from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, CartPole, Integrator, LinearSystem, Rollout
from policies import MLP, Linear

VARIANTS = {"R": FULL, "M": PHYSICS_ONLY, "S": ONE_STEP, "N": POLICY_ONLY}
BATCH = 8
# One object for all tests, since Taichi compiles the kernels of each object anew.
CART_POLES = {poles: CartPole(poles) for poles in (1, 2, 3, 4)}


def quadratic(state, control, t):
    """A cost of states, controls and time."""
    return (0.01 + 0.001 * t) * state.square().sum(1) + 0.02 * control.square().sum(1)


SWING_UP = StepCost(final=reference.swing_up_cost)
TRACKING = StepCost(quadratic, reference.swing_up_cost)
RUNNING = StepCost(quadratic)


def accuracy():
    return 1e-10 if engine.current().precision == "float64" else 1e-5


def random_policy(kind, *args, members=1, **kwargs):
    """A policy with every parameter drawn, biases too: member m from seed m, whatever the number of members."""
    policy = kind(*args, members=members, **kwargs, **tensor_options())
    for member in range(members):
        policy.initialise(member, torch.Generator().manual_seed(member))
        policy.theta.data[member] += uniform(100 + member, policy.parameter_count, low=-0.05, high=0.05)
    return policy


def mlp(widths, parameters, state):
    """The oracle's network on one flat row of parameters, a layer's biases being the last row of its matrix."""
    sizes = [(inputs + 1) * outputs for inputs, outputs in pairwise(widths)]
    layers = [part.view(-1, outputs) for part, outputs in zip(parameters[0].split(sizes), widths[1:], strict=True)]
    return reference.mlp([layer[:-1] for layer in layers], [layer[-1] for layer in layers], state)


def expected_gradient(variant, step, widths, theta, initial, horizon, cost):
    """The oracle's gradient in float64 on the CPU of the mean loss, flat."""
    parameters, initial = [theta.detach().cpu().double().flatten()], initial.cpu().double()
    final = cost._final or (lambda state: state.new_zeros(len(state)))
    (gradient,) = reference.gradients(
        variant, parameters, step, partial(mlp, widths), initial, horizon, cost._running, final
    )
    return gradient


def check_path_rules(rollout, policy, initial, objective, step, cost, slowly=False):
    """Gradients under an MLP equal the oracle's, whose `step` and `cost` take flat rows, for every path rule.

    Slowly too where a system sweeps in one launch: step by step.
    """
    rollout.forward(initial)
    ways = {variant: [rule, BySteps(rule)] if slowly else [rule] for variant, rule in VARIANTS.items()}
    gradients = rollout.backward([rule for rules in ways.values() for rule in rules], objective).parameters
    for variant, rules in ways.items():
        flat = initial.flatten(1)
        expected = expected_gradient(variant, step, policy.widths, policy.theta, flat, rollout.horizon, cost)
        for rule in rules:
            assert relative_error(gradients[rule].flatten(), expected) < accuracy(), (variant, rule)


def cart_pole(poles, horizon=100, **kwargs):
    """A policy, a rollout of cart-pole under it, and initial states."""
    policy = random_policy(MLP, (2 + 2 * poles,), (1,), (100, 100))
    return policy, Rollout(CART_POLES[poles], policy, horizon, BATCH, **kwargs), swing_up_states(0, BATCH, poles)


def check_cart_pole_gradients(poles, cost):
    policy, rollout, _ = cart_pole(poles)
    # Not seed 0: its samples nearly cancel for two poles, and in float32 the oracle itself is only good to 2e-5.
    initial = swing_up_states(1, BATCH, poles)
    check_path_rules(rollout, policy, initial, cost, reference.cart_pole_step, cost)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("poles", [1, 2, 3, 4])
def test_gradients_of_every_path_rule_equal_the_oracle(poles):
    check_cart_pole_gradients(poles, SWING_UP)


@pytest.mark.cuda
@pytest.mark.parametrize("cost", [TRACKING, RUNNING], ids=["running and final", "running"])
def test_gradients_with_running_costs_equal_the_oracle(cost):
    check_cart_pole_gradients(2, cost)


@pytest.mark.float64
@pytest.mark.parametrize("cost", [SWING_UP, TRACKING], ids=["final", "running and final"])
def test_full_gradient_equals_central_differences_along_random_directions(cost):
    policy, rollout, initial = cart_pole(2)
    theta = policy.theta
    rollout.forward(initial)
    gradient = rollout.backward([FULL], cost).parameters[FULL]

    def loss(parameters):
        theta.data.copy_(parameters[0])
        return rollout.forward(initial, cost).mean()

    given = theta.detach().clone()
    for seed in range(3):
        direction = uniform(seed, *theta.shape)
        slope = reference.directional_difference(loss, [given], [direction], eps=1e-6)
        assert relative_error((gradient * direction).sum(), slope) < 1e-6


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("cost", [SWING_UP, TRACKING], ids=["final", "running and final"])
def test_all_rules_agree_on_a_single_step(cost):
    _, rollout, initial = cart_pole(2, horizon=1)
    rollout.forward(initial)
    gradients = rollout.backward(list(VARIANTS.values()), cost).parameters
    for rule in VARIANTS.values():
        assert torch.equal(gradients[rule], gradients[FULL])


@pytest.mark.cuda
@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_adjoint_is_each_samples_own_gradient(variant):
    policy, rollout, initial = cart_pole(1, horizon=30)
    rollout.forward(initial)
    found = rollout.backward([VARIANTS[variant]], TRACKING).initial[VARIANTS[variant]]
    oracle = partial(mlp, policy.widths, [policy.theta.detach().flatten().double()])
    leaf = initial.double().requires_grad_()
    losses = reference.rollout_loss(
        reference.cart_pole_step, oracle, leaf, 30, quadratic, reference.swing_up_cost, variant
    )
    assert relative_error(found, torch.autograd.grad(losses.sum(), leaf)[0]) < accuracy()


@pytest.mark.cuda
def test_gradients_of_wide_controls_equal_the_oracle():
    policy, initial, horizon = random_policy(MLP, (9,), (9,), (6,)), uniform(0, BATCH, 9), 10
    rollout = Rollout(Integrator(9), policy, horizon, BATCH)
    rollout.forward(initial)
    gradients = rollout.backward(list(VARIANTS.values()), RUNNING).parameters
    for variant, rule in VARIANTS.items():
        expected = expected_gradient(
            variant, reference.integrator_step, policy.widths, policy.theta, initial, horizon, RUNNING
        )
        assert relative_error(gradients[rule].flatten(), expected) < accuracy()


# Zeros of the variants, to three decimals, for x' = 1.1 x + u, u = θ x, x_0 = 1 and
# L = ½ Σ_{t=1..T} x_t² + ½ Σ_{t<T} u_t²; S has its zero where 1.1 + 2θ = 0.
@pytest.mark.float64
@pytest.mark.parametrize(
    ("rule", "horizon", "zero"),
    [
        (PHYSICS_ONLY, 2, -0.645),
        (FULL, 2, -0.665),
        (PHYSICS_ONLY, 20, -0.703),
        (FULL, 20, -0.703),
        (ONE_STEP, 2, -0.550),
        (ONE_STEP, 20, -0.550),
    ],
)
def test_scalar_regulator_has_its_known_zeros(rule, horizon, zero):
    cost = StepCost(
        lambda x, u, t: 0.5 * u.square().sum(1) + (0.5 * x.square().sum(1) if t > 0 else 0.0),
        lambda x: 0.5 * x.square().sum(1),
    )
    policy = Linear((1,), (1,), bias=False, members=2, **tensor_options())
    policy.theta.data.copy_(torch.tensor([[zero - 6e-4], [zero + 6e-4]]))
    rollout = Rollout(LinearSystem([[1.1]], [[1.0]]), policy, horizon, 2)
    rollout.forward(torch.ones(2, 1, **tensor_options()))
    below, above = rollout.backward([rule], cost).parameters[rule]
    assert below < 0 < above


@pytest.mark.float64
def test_members_of_an_ensemble_do_not_touch_each_other():
    members, rules, initial = 3, list(VARIANTS.values()), swing_up_states(0, 3 * BATCH, 2)
    shared = random_policy(MLP, (6,), (1,), (20, 10), members=members)
    ensemble = Rollout(CART_POLES[2], shared, 50, 3 * BATCH)
    ensemble.forward(initial)
    together = ensemble.backward(rules, TRACKING)
    for member in range(members):
        rows = slice(member * BATCH, (member + 1) * BATCH)
        policy = MLP((6,), (1,), (20, 10), **tensor_options())
        policy.theta.data.copy_(shared.theta[member : member + 1])
        single = Rollout(CART_POLES[2], policy, 50, BATCH)
        single.forward(initial[rows])
        alone = single.backward(rules, TRACKING)
        assert relative_error(together.losses[rows], alone.losses) < 1e-12
        for rule in rules:
            assert relative_error(together.parameters[rule][member], alone.parameters[rule][0]) < 1e-12


@pytest.mark.float64
def test_changed_parameters_count_from_the_next_forward_pass():
    policy, rollout, initial = cart_pole(1, horizon=10)
    rollout.forward(initial)
    policy.theta.data.mul_(0.5)
    rollout.forward(initial)
    found = rollout.backward([FULL], SWING_UP).parameters[FULL]
    widths, theta = policy.widths, policy.theta
    expected = expected_gradient("R", reference.cart_pole_step, widths, theta, initial, 10, SWING_UP)
    assert relative_error(found.flatten(), expected) < accuracy()


@pytest.mark.float64
@pytest.mark.parametrize("samples", [slice(1, 8), slice(4, 7), slice(4, 12)], ids=lambda s: f"{s.start} to {s.stop}")
def test_samples_that_are_not_whole_members_are_refused(samples):
    rollout = Rollout(CART_POLES[1], Linear((4,), (1,), members=2, **tensor_options()), 2, BATCH)
    rollout.forward(swing_up_states(0, BATCH, 1))
    with pytest.raises(engine.ShapeError, match="whole members"):
        rollout.backward([FULL], SWING_UP, {FULL: samples})


@pytest.mark.float64
def test_samples_of_a_rule_that_is_not_swept_are_refused():
    _, rollout, initial = cart_pole(1, horizon=2)
    rollout.forward(initial)
    with pytest.raises(engine.ShapeError, match="Expected samples of rules that are swept, got samples of PathRule"):
        rollout.backward([FULL], SWING_UP, {PHYSICS_ONLY: slice(0, BATCH)})


@pytest.mark.float64
def test_an_adjoint_before_any_forward_pass_is_refused():
    _, rollout, _ = cart_pole(1, horizon=2)
    with pytest.raises(engine.AdjointError, match="Expected a forward rollout before its adjoint"):
        rollout.backward([FULL], SWING_UP)


@pytest.mark.float64
def test_adjoints_cannot_be_added_to_states_that_are_not_stored():
    _, rollout, initial = cart_pole(1, horizon=6, segment=3)
    rollout.forward(initial)
    rollout.states.requires_grad_()
    rollout.states.grad = torch.ones_like(rollout.states)
    with pytest.raises(engine.AdjointError, match="segments"):
        rollout.backward([FULL])

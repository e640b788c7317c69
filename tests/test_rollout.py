"""Rollouts: losses and the gradients of every path rule against the oracle, differences and closed forms."""

import math
from functools import partial
from itertools import pairwise

import pytest
import reference
import torch
from conftest import BySteps, StepCost, relative_error, swing_up_states, tensor_options, uniform

import engine
from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, CartPole, Integrator, LinearSystem, Rollout
from engine import trajectory as trajectory_module
from policies import MLP, Linear, PolicyError

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


def cart_pole(poles, horizon=100, **kwargs):
    """A policy, a rollout of cart-pole under it, and initial states."""
    policy = random_policy(MLP, (2 + 2 * poles,), (1,), (100, 100))
    return policy, Rollout(CART_POLES[poles], policy, horizon, BATCH, **kwargs), swing_up_states(0, BATCH, poles)


def check_cart_pole_gradients(poles, cost):
    policy, rollout, _ = cart_pole(poles)
    # Not seed 0: its samples nearly cancel for two poles, and in float32 the oracle itself is only good to 2e-5.
    initial = swing_up_states(1, BATCH, poles)
    rollout.forward(initial)
    gradients = rollout.backward(list(VARIANTS.values()), cost).parameters
    for variant, rule in VARIANTS.items():
        expected = expected_gradient(variant, reference.cart_pole_step, policy.widths, policy.theta, initial, 100, cost)
        assert relative_error(gradients[rule].flatten(), expected) < accuracy(), variant


@pytest.mark.parametrize("poles", [1, 2, 3, 4])
def test_gradients_of_every_path_rule_equal_the_oracle(poles):
    check_cart_pole_gradients(poles, SWING_UP)


@pytest.mark.parametrize("cost", [TRACKING, RUNNING], ids=["running and final", "running"])
def test_gradients_with_running_costs_equal_the_oracle(cost):
    check_cart_pole_gradients(2, cost)


@pytest.mark.vulkan
def test_gradients_equal_the_oracle_on_vulkan_too():
    check_cart_pole_gradients(1, SWING_UP)


@pytest.mark.cuda
@pytest.mark.parametrize("cost", [SWING_UP, TRACKING], ids=["final", "running and final"])
def test_cuda_gradients_equal_the_oracle_on_the_cpu(cost):
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


@pytest.mark.vulkan
@pytest.mark.parametrize("cost", [SWING_UP, TRACKING], ids=["final", "running and final"])
def test_all_rules_agree_on_a_single_step(cost):
    _, rollout, initial = cart_pole(2, horizon=1)
    rollout.forward(initial)
    gradients = rollout.backward(list(VARIANTS.values()), cost).parameters
    for rule in VARIANTS.values():
        assert torch.equal(gradients[rule], gradients[FULL])


def test_losses_of_both_passes_equal_the_oracle():
    policy, rollout, initial = cart_pole(2)
    losses = rollout.forward(initial, TRACKING)
    oracle = partial(mlp, policy.widths, [policy.theta.detach().flatten().double()])
    expected = reference.rollout_loss(
        reference.cart_pole_step, oracle, initial.double(), 100, quadratic, reference.swing_up_cost
    )
    assert relative_error(losses, expected) < accuracy()
    torch.testing.assert_close(rollout.backward([FULL], TRACKING).losses, losses)


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


@pytest.mark.vulkan
def test_fused_sweeps_equal_sweeps_by_steps():
    _, rollout, initial = cart_pole(2, horizon=30)
    rules = [engine.PathRule(1.0, 1.0), PHYSICS_ONLY, engine.PathRule(0.5, 0.25)]
    slow = [BySteps(rule) for rule in rules]
    rollout.forward(initial)
    found = rollout.backward([*rules, *slow], TRACKING)
    for fused, stepped in zip(rules, slow, strict=True):
        assert relative_error(found.parameters[fused], found.parameters[stepped]) < accuracy()
        assert relative_error(found.initial[fused], found.initial[stepped]) < accuracy()


@pytest.mark.vulkan
@pytest.mark.parametrize("kind", [MLP, Linear])
def test_one_policy_pull_back_per_step_equals_all_jacobians_at_once(kind, monkeypatch):
    system, initial = LinearSystem(torch.eye(3) * 0.9, torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.3, 0.2]])), None
    policy, initial = random_policy(kind, (3,), (2,), members=2), uniform(0, BATCH, 3)
    found = []
    for limit in (trajectory_module._JACOBIAN_CONTROLS, 0):
        monkeypatch.setattr(trajectory_module, "_JACOBIAN_CONTROLS", limit)
        rollout = Rollout(system, policy, 12, BATCH)
        assert rollout.holds_jacobian == (limit > 0)
        rollout.forward(initial)
        found.append(rollout.backward([FULL, PHYSICS_ONLY, POLICY_ONLY], RUNNING).parameters)
    for rule, gradient in found[0].items():
        assert relative_error(found[1][rule], gradient) < accuracy()


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


@pytest.mark.parametrize("kind", [MLP, Linear])
def test_a_rule_may_sweep_only_the_members_that_need_it(kind):
    policy, initial = random_policy(kind, (4,), (1,), members=4), swing_up_states(0, 4 * BATCH, 1)
    rollout = Rollout(CART_POLES[1], policy, 30, 4 * BATCH)
    slow = BySteps(FULL)
    rollout.forward(initial)
    everything = rollout.backward([FULL, PHYSICS_ONLY], TRACKING).parameters
    members = {FULL: slice(0, 2), PHYSICS_ONLY: slice(1, 4), slow: slice(2, 3)}
    samples = {rule: slice(chosen.start * BATCH, chosen.stop * BATCH) for rule, chosen in members.items()}
    found = rollout.backward([FULL, PHYSICS_ONLY, slow], TRACKING, samples).parameters
    for rule, chosen in members.items():
        expected = torch.zeros_like(found[rule])
        expected[chosen] = everything[PHYSICS_ONLY if rule is PHYSICS_ONLY else FULL][chosen]
        assert relative_error(found[rule], expected) < accuracy()
        assert torch.equal(found[rule] == 0, expected == 0)


@pytest.mark.float64
def test_a_rule_given_twice_is_swept_once():
    _, rollout, initial = cart_pole(1, horizon=10)
    rollout.forward(initial)
    once = rollout.backward([FULL], SWING_UP).parameters[FULL]
    twice = rollout.backward([FULL, engine.PathRule(1.0, 1.0)], SWING_UP).parameters
    assert torch.equal(twice[FULL], once)


@pytest.mark.float64
def test_repeated_backward_passes_give_the_same_gradient():
    _, rollout, initial = cart_pole(1, horizon=10, segment=4)
    rollout.forward(initial)
    first, second = (rollout.backward([FULL], TRACKING).parameters[FULL] for _ in range(2))
    assert torch.equal(first, second)


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
def test_costs_that_depend_on_nothing_have_no_gradient():
    _, rollout, initial = cart_pole(1, horizon=10)
    cost = StepCost(lambda x, u, t: x.new_full((len(x),), 0.5), lambda x: x.new_ones(len(x)))
    rollout.forward(initial)
    found = rollout.backward([FULL], cost)
    assert not found.parameters[FULL].any()
    torch.testing.assert_close(found.losses, torch.full_like(found.losses, 6.0))


def test_evaluation_stores_no_states_and_finds_the_same_losses():
    _, stored, initial = cart_pole(2)
    evaluation = Rollout(stored.system, stored.controller, 100, BATCH, forward_only=True)
    torch.testing.assert_close(evaluation.forward(initial, TRACKING), stored.forward(initial, TRACKING))
    assert torch.equal(evaluation.final_state, stored.final_state)
    assert len(evaluation.states) == 2
    with pytest.raises(engine.AdjointError, match="Expected a rollout that stores its states"):
        evaluation.backward([FULL], TRACKING)


@pytest.mark.float64
@pytest.mark.parametrize("segment", [None, 2])
def test_first_state_that_is_not_finite_is_found(segment):
    policy = Linear((1,), (1,), **tensor_options())
    rollout = Rollout(LinearSystem([[1e100]], [[1.0]]), policy, 8, 3, segment=segment)
    rollout.forward(torch.tensor([[0.0], [1.0], [1e100]], **tensor_options()))
    assert rollout.first_nonfinite(slice(0, 3)) == (3, 2)
    assert rollout.first_nonfinite(slice(0, 2)) == (4, 1)
    assert rollout.first_nonfinite(slice(0, 1)) is None


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"horizon": 0}, engine.SettingError, "Expected a horizon of at least 1, got 0."),
        ({"horizon": 2.0}, engine.SettingError, "Expected a horizon of at least 1, got 2.0."),
        ({"batch": -1}, engine.SettingError, "Expected a batch of at least 1, got -1."),
        ({"segment": 0}, engine.SettingError, "Expected a segment of at least 1, got 0."),
        ({"batch": 7}, engine.ShapeError, "Expected a batch that is a multiple of the 2 members, got 7 samples."),
    ],
)
def test_impossible_rollouts_are_refused(settings, error, message):
    policy = Linear((4,), (1,), members=2, **tensor_options())
    with pytest.raises(error) as refusal:
        Rollout(CART_POLES[1], policy, **{"horizon": 5, "batch": 8, **settings})
    assert str(refusal.value) == message


@pytest.mark.float64
def test_an_initial_state_that_does_not_fit_is_refused():
    _, rollout, initial = cart_pole(1, horizon=2)
    with pytest.raises(engine.ShapeError, match=r"Expected initial state of shape \[8, 4\], got \[7, 4\]"):
        rollout.forward(initial[:7])


@pytest.mark.float64
@pytest.mark.parametrize("kind", [MLP, Linear])
def test_a_policy_of_another_precision_is_refused(kind):
    with pytest.raises((engine.EvenflowError, PolicyError), match=r"float64.*float32"):
        Rollout(CART_POLES[1], kind((4,), (1,), dtype=torch.float32), 2, BATCH)


@pytest.mark.float64
@pytest.mark.parametrize("samples", [slice(1, 8), slice(4, 7), slice(4, 12)], ids=lambda s: f"{s.start} to {s.stop}")
def test_samples_that_are_not_whole_members_are_refused(samples):
    rollout = Rollout(CART_POLES[1], Linear((4,), (1,), members=2, **tensor_options()), 2, BATCH)
    rollout.forward(swing_up_states(0, BATCH, 1))
    with pytest.raises(engine.ShapeError, match="whole members"):
        rollout.backward([FULL], SWING_UP, {FULL: samples})


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


@pytest.mark.float64
def test_a_loss_that_is_not_a_number_gives_a_gradient_that_is_not_one():
    _, rollout, initial = cart_pole(1, horizon=5)
    initial[0, 0] = math.nan
    cost = StepCost(final=lambda state: state.square().sum(1))
    assert rollout.forward(initial, cost)[0].isnan()
    assert rollout.backward([FULL], cost).parameters[FULL].isnan().any()

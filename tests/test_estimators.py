"""Gradient estimators: names, the sign agreement, and what an update of the combined gradient costs."""

import math

import pytest
import reference
import torch
from conftest import relative_error, swing_up_states, tensor_options, uniform

import engine
from engine import FULL, PHYSICS_ONLY, CartPole, Rollout, SettingError
from policies import MLP
from training import Backpropagation, Member, SignAgreement, Trainer, build_task, gradient_named
from training.gradients import GRADIENTS, lettered
from training.tasks.cart_pole import Upright

BATCH, HORIZON = 8, 100
# One object for all tests, since Taichi compiles the kernels of each object anew.
CART_POLES = {poles: CartPole(poles) for poles in (1, 2, 3, 4)}


def accuracy():
    return 1e-10 if engine.current().precision == "float64" else 1e-5


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("poles", [1, 2, 3, 4])
@pytest.mark.parametrize("letter", lettered())
def test_every_named_gradient_equals_the_oracle(letter, poles):
    estimator = gradient_named(letter).estimator
    policy = MLP((2 + 2 * poles,), (1,), **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(poles))
    if letter == "C":
        policy.theta.data *= 3.0  # a livelier policy, on which R and M disagree about more signs
    initial = swing_up_states(poles, BATCH, poles)
    rollout = Rollout(CART_POLES[poles], policy, HORIZON, BATCH)
    rollout.forward(initial)
    found = estimator.combine(rollout.backward(estimator.rules, Upright(poles)).parameters)

    def oracle(parameters, state):
        weights = [layer[0, :-1] for layer in policy.layers(parameters[0])]
        biases = [layer[0, -1] for layer in policy.layers(parameters[0])]
        return reference.mlp(weights, biases, state)

    theta = policy.theta.detach().double()
    full, physics, expected = (
        reference.gradients(
            variant, [theta], reference.cart_pole_step, oracle, initial.double(), HORIZON, None,
            reference.swing_up_cost,
        )[0]
        for variant in ("R", "M", letter)
    )  # fmt: skip
    if letter == "C":
        # Where a component of R or M is as small as its rounding error, its sign is chance and so is C there.
        doubtful = torch.zeros_like(theta, dtype=torch.bool)
        for gradient in (full, physics):
            doubtful |= gradient.abs() < 3 * accuracy() * gradient.square().mean().sqrt()
        assert doubtful.double().mean() < 0.01
        expected, found = expected.masked_fill(doubtful, 0.0), found.double().masked_fill(doubtful, 0.0)
        assert 0.02 < float((found == 0).double().mean()) < 0.5
    assert relative_error(found, expected) < accuracy()


@pytest.mark.parametrize("rule", [FULL, PHYSICS_ONLY], ids=["R", "M"])
def test_the_sign_agreement_of_a_gradient_with_itself_is_that_gradient(rule):
    estimator = SignAgreement(Backpropagation(rule), Backpropagation(rule))
    gradient = uniform(0, 3, 50)
    assert estimator.rules == (rule,)
    assert torch.equal(estimator.combine({rule: gradient}), gradient)


COMBINED = SignAgreement(Backpropagation(PHYSICS_ONLY), Backpropagation(FULL))


def combined(base, reference_):
    rows = {PHYSICS_ONLY: base, FULL: reference_}
    return COMBINED.combine({rule: torch.tensor([row], **tensor_options()) for rule, row in rows.items()})[0].tolist()


def test_components_are_kept_whole_where_signs_agree_and_zero_elsewhere():
    assert combined([2.0, 2.0, -3.0, -3.0], [0.1, -0.1, -0.2, 0.2]) == [2.0, 0.0, -3.0, 0.0]


def test_zero_agrees_only_with_zero():
    assert combined([0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 5.0]) == [0.0, 0.0, 0.0, 0.0]


def test_components_too_small_to_multiply_still_agree():
    tiny = 1e-30 if engine.current().precision == "float32" else 1e-200
    assert combined([tiny, tiny], [tiny, -tiny]) == pytest.approx([tiny, 0.0], rel=1e-6, abs=0.0)


def test_an_exploded_reference_still_has_signs_and_nan_agrees_with_nothing():
    assert combined([1.0, 1.0, 1.0], [math.inf, -math.inf, math.nan]) == [1.0, 0.0, 0.0]


def test_a_gradient_that_is_no_number_stays_none_whatever_its_reference():
    """Else a member without a gradient would stand still, and its loss and norm look sound."""
    kept = combined([math.nan, math.nan, 1.0], [1.0, math.nan, 1.0])
    assert [math.isnan(value) for value in kept] == [True, True, False]
    kept = combined([math.inf, -math.inf, -math.inf], [math.nan, 0.0, 1.0])
    assert [math.isnan(value) for value in kept] == [True, True, False]


def test_an_infinite_component_is_dropped_where_signs_differ():
    assert combined([math.inf, 2.0], [-1.0, 1.0]) == [0.0, 2.0]
    assert combined([math.inf, 2.0], [1.0, 1.0]) == [math.inf, 2.0]


@pytest.mark.float64
def test_the_combined_gradient_takes_one_rollout_and_two_sweeps():
    task = build_task("cart-pole", horizon=20)
    trainer = Trainer(task, [Member(gradient_named("C").estimator)])
    launched = {"rollouts": 0, "sweeps": 0}

    def counted(kind, launch):
        def count_and_launch(*args):
            launched[kind] += 1
            launch(*args)

        return count_and_launch

    launches, prepare_sweep = trainer.rollout._launches, task.system.prepare_sweep
    launches.run = counted("rollouts", launches.run)  # type: ignore[method-assign]
    task.system.prepare_sweep = lambda *args: counted("sweeps", prepare_sweep(*args))  # type: ignore[method-assign]
    trainer.update(task.initial_states(8, 0, "train", engine.current().dtype))
    assert launched == {"rollouts": 1, "sweeps": 2}


@pytest.mark.float64
@pytest.mark.parametrize("letter", lettered())
def test_letters_and_names_lead_to_the_same_gradient(letter):
    (alias,) = GRADIENTS[letter].aliases
    for name in (letter, letter.lower(), alias):
        assert gradient_named(name) == gradient_named(letter)
        assert gradient_named(name).text == letter


@pytest.mark.float64
def test_an_unknown_gradient_is_refused_with_those_there_are():
    with pytest.raises(SettingError, match=r"Expected a gradient among R, M, .*, got 'Q'\."):
        gradient_named("Q")

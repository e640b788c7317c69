"""Rules that are called otherwise than a kernel would have it: the call decides, or the rule is refused."""

import pytest
import taichi as ti
import torch
from conftest import BySteps, StepCost, relative_error, tensor_options, uniform

from engine import FULL, AdjointError, CartPole, ClipNorm, EveryStep, Noise, Observation, PathRule, QuantumBox, Rollout
from engine.rules import PerSample
from policies import Linear

pytestmark = pytest.mark.float64

BATCH, HORIZON = 3, 5
COST = StepCost(
    lambda x, u, t: x.square().flatten(1).sum(1) + u.square().flatten(1).sum(1), lambda x: x.square().flatten(1).sum(1)
)


def rolled_out(system, **given):
    policy = Linear(system.state_shape, system.control_shape, **tensor_options())
    policy.theta.data.copy_(0.3 * uniform(3, *policy.theta.shape))
    rollout = Rollout(system, policy, HORIZON, BATCH, **given)
    if "noise" in given:
        rollout.seed_noise(7)
    rows = () if "parameters" not in given else (uniform(5, BATCH, 1, low=0.5, high=1.5),)
    rollout.forward(0.3 * uniform(4, BATCH, *system.state_shape), COST, *rows)
    return rollout


class Half(PathRule):
    """Derived from a rule that is swept as a sum, and called for half of it."""

    def __call__(self, direct, physics, policy, t):
        return 0.5 * super().__call__(direct, physics, policy, t)


class Lying:
    """Says the weights of R and returns none of its paths."""

    uses_physics = uses_policy = True
    path_weights = (1.0, 1.0)

    def __call__(self, direct, physics, policy, t):
        return direct.clone()


@pytest.mark.parametrize("rule", [Half(), Lying()], ids=["derived", "weights"])
def test_a_rule_is_what_its_call_gives_whatever_it_inherits_or_says(rule):
    rollout, slow = rolled_out(CartPole(1)), BySteps(rule)
    found = rollout.backward([rule, slow, FULL], COST).parameters
    assert torch.equal(found[rule], found[slow])
    assert relative_error(found[rule], found[FULL]) > 0.01


class Fading:
    """A user's rule whose number may change."""

    uses_physics = uses_policy = True

    def __init__(self):
        self.share = 1.0

    def __call__(self, direct, physics, policy, t):
        return direct + self.share * physics + policy

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return direct + self.share * physics + policy


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_number_that_a_kernel_holds_may_not_change(wrapped):
    fading, rollout = Fading(), rolled_out(CartPole(1))
    rule = ClipNorm(fading, 100.0) if wrapped else fading
    first = rollout.backward([rule], COST).parameters[rule]
    assert torch.equal(rollout.backward([rule], COST).parameters[rule], first)
    fading.share = 0.5
    with pytest.raises(AdjointError, match=r"with the numbers that it had when it was first swept"):
        rollout.backward([rule], COST)


@pytest.mark.parametrize("wrap", [ClipNorm, EveryStep])
def test_what_is_wanted_of_each_sample_stands_outside(wrap):
    with pytest.raises(AdjointError, match=rf"PerSample around the other rules, .* write PerSample\({wrap.__name__}"):
        wrap(PerSample(FULL))


@pytest.mark.parametrize("system", [QuantumBox(8), CartPole(1)], ids=["quantum", "cart-pole"])
@pytest.mark.parametrize("rule", [FULL, PathRule(0.5, 0.7), ClipNorm(FULL, 1e9)], ids=["R", "weights", "clipped"])
def test_noise_on_states_is_no_part_of_a_step(system, rule):
    rollout, slow = rolled_out(system, noise=Noise(state=0.1)), BySteps(rule)
    gradients = rollout.backward([rule, slow], COST)
    assert relative_error(gradients.parameters[rule], gradients.parameters[slow]) < 1e-10
    assert relative_error(gradients.initial[rule], gradients.initial[slow]) < 1e-10


def to_what_is_seen(rule):
    """∂L/∂p by a rule, of a parameter that the controller sees."""
    observed = Observation(lambda states, steps, given: states * given["pole_mass"].unsqueeze(-1), (4,))
    rollout = rolled_out(CartPole(1), observation=observed, parameters=["pole_mass"])
    return rollout.backward([rule], COST).physical[rule]


def test_a_rule_for_every_step_weighs_parameters_as_the_rule_itself():
    rule = PathRule(1.0, 0.5)
    wanted = to_what_is_seen(rule)
    assert wanted.abs().max() > 0
    for same in (EveryStep(rule), PerSample(EveryStep(rule))):
        assert relative_error(to_what_is_seen(same), wanted) < 1e-12


def test_noise_that_is_seeded_anew_is_not_that_of_the_rollout():
    for segment in (None, 2):
        rollout = rolled_out(CartPole(1), noise=Noise(state=0.1), segment=segment)
        rollout.seed_noise(7)  # the same
        rollout.backward([FULL], COST)
        rollout.seed_noise(8)
        with pytest.raises(AdjointError, match="got noise that was seeded anew since; call the rollout again first"):
            rollout.backward([FULL], COST)


def test_a_rollout_that_failed_cannot_be_swept():
    rollout = rolled_out(CartPole(1), parameters=["pole_mass"])
    with pytest.raises(Exception, match="pole_mass"):
        rollout.forward(rollout.initial_state, COST, -torch.ones(BATCH, 1, **tensor_options()))
    with pytest.raises(AdjointError, match="a forward rollout before its adjoint"):
        rollout.backward([FULL], COST)

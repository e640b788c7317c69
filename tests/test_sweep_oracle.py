"""Rules between steps against a recursion of their own: plain torch in float64, one sample, one Jacobian at a time."""

import math

import pytest
import reference
import torch
from conftest import StepCost, relative_error, swing_up_states, tensor_options, uniform
from torch.func import grad, jacrev

from engine import FULL, PHYSICS_ONLY, CartPole, ClipNorm, EveryStep, Held, LinearSystem, RandomCut, Rollout
from policies import MLP, Linear
from training import gradient_named

pytestmark = pytest.mark.float64

SYSTEM, HORIZON, BATCH = CartPole(2), 12, 4
FORMULAS = {
    "step-agreement": lambda direct, a, k, t: direct + a + k * (a * k > 0),
    "keep-size": lambda direct, a, k, t: (direct + a + k) * (direct + a).norm() / (direct + a + k).norm(),
    "clip-value(R, 0.3)": lambda direct, a, k, t: (direct + a + k).clamp(-0.3, 0.3),
    "decay-rate(R, 20)": lambda direct, a, k, t: direct + math.exp(-0.2) * (a + k),
    "clip-value(decay-rate(M, 20), 1)": lambda direct, a, k, t: (direct + math.exp(-0.2) * a).clamp(-1, 1),
    "balance(0.5)": lambda direct, a, k, t: direct + a + k * min(1.0, 0.5 * float(a.norm() / k.norm())),
}
HELD = 3
EVERY_STEP = {
    "clip-value(R, 0.3)": FORMULAS["clip-value(R, 0.3)"],
    "clip-norm(M, 0.2)": lambda direct, a, k, t: (direct + a) * min(1.0, 0.2 / float((direct + a).norm())),
    "decay(R, 0.8)": lambda direct, a, k, t: direct + 0.8 * (a + k),
    "decay-rate(R, 20)": FORMULAS["decay-rate(R, 20)"],
    "truncate(R, 4)": lambda direct, a, k, t: direct if t % 4 == 0 else direct + a + k,
    "step-agreement": FORMULAS["step-agreement"],
    "N": lambda direct, a, k, t: direct + k,
}


def running(state, control, t):
    return (0.5 + 0.01 * t) * state.square().sum(1) + 0.2 * control.square().sum(1)


def oracle(formula, policy, initial, held=1):
    """The gradient of the mean loss, with every derivative by torch.func and λ_t = formula(∂ℓ/∂x, Aᵀλ, Kᵀμ, t).

    Each control is held for some steps of physics, which t counts.
    """
    theta, total = policy.theta.detach()[0], torch.zeros(policy.parameter_count, dtype=torch.float64)

    def act(parameters, x):
        layers = [parameters[: 7 * 10].view(7, 10), parameters[7 * 10 :].view(11, 1)]
        return reference.mlp([layer[:-1] for layer in layers], [layer[-1] for layer in layers], x[None])[0]

    def step(x, u):
        return reference.cart_pole_step(x[None], u[None])[0]

    def cost(x, u, t):
        return running(x[None], u[None], t)[0]

    for x in initial:
        states = [x]
        for t in range(HORIZON * held):
            states.append(step(states[-1], act(theta, states[t // held * held])))
        adjoint = grad(lambda x: reference.swing_up_cost(x[None])[0])(states[-1])
        for t in reversed(range(HORIZON)):
            x, u = states[t * held], act(theta, states[t * held])
            direct, mu = grad(cost, (0, 1))(x, u, t)
            physics = adjoint
            for s in reversed(range(t * held, t * held + held)):
                a, b = jacrev(step, (0, 1))(states[s], u)
                mu = mu + b.T @ adjoint
                physics = a.T @ adjoint
                if s > t * held:
                    adjoint = formula(0 * x, physics, 0 * x, s)
            of_theta, of_state = jacrev(act, (0, 1))(theta, x)
            total += of_theta.T @ mu / len(initial)
            adjoint = formula(direct, physics, of_state.T @ mu, t * held)
    return total


@pytest.fixture(scope="module")
def policy():
    found = MLP((6,), (1,), hidden=(10,), **tensor_options())
    found.theta.data.copy_(uniform(0, *found.theta.shape, low=-2.0, high=2.0))
    found.theta.data[:, 70:] *= 10.0  # forces strong enough for the policy path to matter in so few steps
    return found


@pytest.mark.parametrize("text", FORMULAS)
def test_a_sweep_with_a_rule_equals_the_recursion_however_the_rollout_is_cut(text, policy):
    (rule,) = gradient_named(text).estimator.rules
    initial, cost = swing_up_states(0, BATCH, 2), StepCost(running, reference.swing_up_cost)
    found = {}
    for segment in (None, 5):
        rollout = Rollout(SYSTEM, policy, HORIZON, BATCH, segment=segment)
        rollout.forward(initial, cost)
        found[segment] = rollout.backward([FULL, rule], cost)
    expected = oracle(FORMULAS[text], policy, initial)
    assert relative_error(found[None].parameters[rule][0], expected) < 1e-10
    assert relative_error(found[5].parameters[rule][0], expected) < 1e-10
    assert torch.equal(found[None].initial[rule], found[5].initial[rule])
    assert relative_error(found[None].parameters[FULL][0], expected) > 1e-2  # another rule is told from it


@pytest.mark.parametrize("text", EVERY_STEP)
def test_a_rule_between_held_steps_is_the_recursion_over_all_of_them(text, policy):
    (rule,) = gradient_named(f"every-step({text})").estimator.rules
    (outside,) = gradient_named(text).estimator.rules
    initial, cost = swing_up_states(0, BATCH, 2), StepCost(running, reference.swing_up_cost)
    expected, found = oracle(EVERY_STEP[text], policy, initial, HELD), {}
    for segment in (None, 5):
        rollout = Rollout(Held(SYSTEM, HELD), policy, HORIZON, BATCH, segment=segment)
        rollout.forward(initial, cost)
        found[segment] = rollout.backward([rule, outside], cost)
        assert relative_error(found[segment].parameters[rule][0], expected) < 1e-10
    assert torch.equal(found[None].initial[rule], found[5].initial[rule])
    if text != "step-agreement":  # which has nothing to say where there is no policy path
        assert relative_error(found[None].parameters[outside][0], expected) > 1e-6


def test_a_rule_for_every_step_is_the_rule_itself_where_no_control_is_held(policy):
    initial, cost = swing_up_states(0, BATCH, 2), StepCost(running, reference.swing_up_cost)
    rules = [ClipNorm(FULL, 0.2), EveryStep(ClipNorm(FULL, 0.2))]
    for system in (SYSTEM, Held(SYSTEM, 1)):
        rollout = Rollout(system, policy, HORIZON, BATCH)
        rollout.forward(initial, cost)
        found = rollout.backward(rules, cost).parameters
        assert torch.equal(*found.values())


def test_random_cuts_are_unbiased_and_alike_however_the_rollout_is_cut():
    """λ_0 of 4000 samples with cuts, beside that of the rule without."""
    system = LinearSystem(torch.tensor([[1.0, 0.1], [-0.2, 0.97]]), torch.tensor([[0.0], [0.1]]))
    policy = Linear((2,), (1,), **tensor_options())
    policy.theta.data.copy_(torch.tensor([[-1.0, 0.5, 0.1]]))
    rules = [PHYSICS_ONLY, RandomCut(PHYSICS_ONLY, 0.1), FULL, RandomCut(FULL, 0.1), RandomCut(FULL, 0.1, seed=1)]
    cost, found = StepCost(running, lambda state: state.square().sum(1)), {}
    for segment in (None, 7):
        rollout = Rollout(system, policy, 20, 4000, segment=segment)
        rollout.forward(uniform(0, 4000, 2), cost)
        found[segment] = rollout.backward(rules, cost).initial
    assert all(torch.equal(found[None][rule], found[7][rule]) for rule in rules)
    for whole, cut in ((rules[0], rules[1]), (rules[2], rules[3]), (rules[2], rules[4])):
        # Over |λ_0|, for samples of every size to count.
        size = found[None][whole].norm(dim=1, keepdim=True)
        deviation = (found[None][cut] - found[None][whole]) / size
        error = deviation.std(0) / math.sqrt(4000)
        assert (error < 0.03).all()
        assert (deviation.mean(0).abs() < 3 * error).all()
        assert (deviation.norm(dim=1) > 0.05).double().mean() > 0.5  # they do cut
    assert (found[None][rules[3]] != found[None][rules[4]]).any(1).double().mean() > 0.5


def test_random_cuts_differ_from_rollout_to_rollout_and_not_with_a_samples_place(policy):
    rule, cost = ClipNorm(RandomCut(FULL, 0.5), 1e9), StepCost(running, reference.swing_up_cost)
    rollout, initial = Rollout(SYSTEM, policy, HORIZON, 64), swing_up_states(0, 64, 2)
    found = []
    for turn, order in ((1, slice(None)), (2, slice(None)), (1, list(reversed(range(64))))):
        rollout.turn = turn - 1
        rollout.forward(initial[order].contiguous(), cost)
        found.append(rollout.backward([rule], cost).initial[rule])
    # Up to the first cut on the way from the start the same was drawn twice for 1/4 + 1/16 + ... = 1/3 of them.
    assert 0.1 < torch.isclose(found[0], found[1]).all(1).double().mean() < 0.55
    torch.testing.assert_close(found[0].flip(0), found[2])


def test_a_held_control_takes_the_time_of_all_its_steps():
    assert SYSTEM.step_time == 0.01
    assert Held(SYSTEM, 5).step_time == pytest.approx(0.05)
    assert LinearSystem(torch.eye(2), torch.ones(2, 1)).step_time is None

"""Controls held for several steps of physics."""

import pytest
import torch
from conftest import StepCost, relative_error, tensor_options, uniform
from test_systems import accuracy

import engine
from engine import CartPole, Rollout
from engine.systems import Held
from policies import Linear
from training import build_task

BATCH = 3


def by_single_steps(system, steps, state, control, next_adjoint):
    """(S(...S(x, u)..., u), Aᵀλ, Bᵀλ) by the chain rule over single steps."""
    states = [state]
    for _ in range(steps):
        states.append(system.step(states[-1], control))
    adjoint, cotangent = next_adjoint, torch.zeros_like(control)
    for before in reversed(states[:-1]):
        adjoint, part = system.pull_back(before, control, adjoint)
        cotangent = cotangent + part
    return states[-1], adjoint, cotangent


def test_it_is_sampled_where_the_system_is():
    inner = build_task("guidance").system
    held, alone = (one.sample(3, torch.Generator().manual_seed(0)) for one in (Held(inner, 2), inner))
    assert torch.equal(held, alone)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_step_and_pull_back_are_those_of_single_steps_one_after_another(steps):
    system = CartPole(2)
    held = Held(system, steps)
    state, next_adjoint = (uniform(seed, BATCH, *system.state_shape) for seed in (0, 1))
    control = uniform(2, BATCH, *system.control_shape)
    end, adjoint, cotangent = by_single_steps(system, steps, state, control, next_adjoint)
    given = next_adjoint.clone()
    assert torch.equal(held.step(state, control), end)
    found, to_control = held.pull_back(state, control, next_adjoint)
    assert torch.equal(next_adjoint, given)
    assert relative_error(found, adjoint) < accuracy()
    assert relative_error(to_control, cotangent) < accuracy()
    summed = torch.ones_like(control)
    held.prepare_pull_back(state, control, next_adjoint, torch.empty_like(state), summed)()
    torch.testing.assert_close(summed, 1 + cotangent)


@pytest.mark.cuda
@pytest.mark.float64
def test_a_rollout_of_a_held_fluid_has_the_gradient_of_differences_along_itself():
    task = build_task("fluid", particles=200, horizon=4, duration=0.1)
    assert isinstance(task.system, Held)
    assert task.system.steps > 1
    policy = task.policy(1, **tensor_options())
    policy.theta.data.copy_(0.1 * uniform(0, *policy.theta.shape))
    start = task.initial_states(2, 0, "train", torch.float64).to(policy.device)
    way = 1e-5 * uniform(1, *policy.theta.shape)
    rollout = Rollout(task.system, policy, task.horizon, 2)
    rollout.forward(start)
    gradient = rollout.backward([engine.FULL], task.objective).parameters[engine.FULL]
    losses = []
    for sign in (1, -1):
        policy.theta.data.add_(sign * way)
        losses.append(rollout.forward(start, task.objective).mean())
        policy.theta.data.sub_(sign * way)
    difference = (losses[0] - losses[1]) / 2
    assert abs(float((gradient * way).sum() - difference)) < 1e-5 * abs(float(difference))


class Chained(CartPole):
    """A class with a step of its own, which is therefore launched step by step."""

    def prepare_step(self, state, control, next_state, parameters=None):
        return super().prepare_step(state, control, next_state, parameters)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("segment", [None, 4])
@pytest.mark.parametrize("parameters", [(), ("pole_mass", "cart_mass")], ids=["constant", "varied"])
def test_a_sweep_in_one_launch_is_that_of_chained_launches(parameters, segment):
    rules = [
        engine.FULL, engine.PHYSICS_ONLY, engine.POLICY_ONLY, engine.Decay(engine.FULL, 0.9),
        engine.EveryStep(engine.ClipNorm(engine.FULL, 0.2)), engine.EveryStep(engine.Truncate(engine.FULL, 4)),
    ]  # fmt: skip
    cost = StepCost(lambda x, u, t: 0.1 * x.square().sum(-1) + u.square().sum(-1), lambda x: x.square().sum(-1))
    given = (uniform(7, BATCH, len(parameters), low=0.5, high=1.5),) if parameters else ()
    policy = Linear((4,), (1,), **tensor_options())
    policy.theta.data.copy_(2.0 * uniform(3, *policy.theta.shape))
    found, launches = [], []
    for system in (CartPole(1), Chained(1)):
        held = Held(system, 3)
        rollout = Rollout(held, policy, 10, BATCH, segment=segment, parameters=parameters)
        rollout.forward(0.3 * uniform(4, BATCH, 4), cost, *given)
        found.append(rollout.backward(rules, cost))
        launches.append(len(held._chains))
    assert launches[0] == 0 < launches[1]
    for rule in rules:
        for kind in ("parameters", "initial", *(["physical"] if parameters else [])):
            one, other = (getattr(gradients, kind)[rule] for gradients in found)
            assert other.abs().max() > 0
            assert relative_error(one, other) < 10 * accuracy()


@pytest.mark.cuda
@pytest.mark.vulkan
def test_what_is_held_twice_is_held_for_as_many_steps_as_both():
    rule = engine.EveryStep(engine.Decay(engine.FULL, 0.5))
    cost = StepCost(lambda x, u, t: 0.1 * x.square().sum(-1), lambda x: x.square().sum(-1))
    policy, found = Linear((4,), (1,), **tensor_options()), []
    policy.theta.data.copy_(uniform(3, *policy.theta.shape))
    for system in (Held(Held(CartPole(1), 2), 3), Held(CartPole(1), 6)):
        rollout = Rollout(system, policy, 4, BATCH)
        rollout.forward(0.3 * uniform(4, BATCH, 4))
        found.append(rollout.backward([rule], cost).parameters[rule])
    assert torch.equal(*found)


@pytest.mark.float64
@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_other_numbers_of_steps_are_refused(steps):
    with pytest.raises(engine.SettingError, match=f"^Expected a control to be held for at least 1 step, got {steps}"):
        Held(CartPole(1), steps)

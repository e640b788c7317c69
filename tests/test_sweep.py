"""Sweeps: fused or step by step, for all members or some, they find the same; what they keep."""

import math
import weakref

import pytest
import torch
from conftest import BySteps, StepCost, relative_error, swing_up_states, tensor_options, uniform
from test_rollout import BATCH, CART_POLES, RUNNING, SWING_UP, TRACKING, accuracy, cart_pole, random_policy

import engine
from engine import FULL, PHYSICS_ONLY, POLICY_ONLY, LinearSystem, Rollout, System
from engine import trajectory as trajectory_module
from policies import MLP, Linear


@pytest.mark.cuda
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


@pytest.mark.cuda
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
def test_costs_that_depend_on_nothing_have_no_gradient():
    _, rollout, initial = cart_pole(1, horizon=10)
    cost = StepCost(lambda x, u, t: x.new_full((len(x),), 0.5), lambda x: x.new_ones(len(x)))
    rollout.forward(initial)
    found = rollout.backward([FULL], cost)
    assert not found.parameters[FULL].any()
    torch.testing.assert_close(found.losses, torch.full_like(found.losses, 6.0))


@pytest.mark.float64
def test_a_loss_that_is_not_a_number_gives_a_gradient_that_is_not_one():
    _, rollout, initial = cart_pole(1, horizon=5)
    initial[0, 0] = math.nan
    cost = StepCost(final=lambda state: state.square().sum(1))
    assert rollout.forward(initial, cost)[0].isnan()
    assert rollout.backward([FULL], cost).parameters[FULL].isnan().any()


class Watched(System):
    """Another system, counting the launches it prepared that are still kept."""

    def __init__(self, of):
        self.of, self.name, self.state_shape, self.control_shape = of, of.name, of.state_shape, of.control_shape
        self.kept = weakref.WeakSet()

    def _watch(self, launch):
        def watched():
            launch()

        self.kept.add(watched)
        return watched

    def prepare_step(self, state, control, next_state):
        return self.of.prepare_step(state, control, next_state)

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        return self._watch(self.of.prepare_pull_back(state, control, next_adjoint, adjoint, cotangent))

    def prepare_sweep(self, arrays):
        launch = self.of.prepare_sweep(arrays)
        return launch and self._watch(launch)


@pytest.mark.float64
def test_launches_for_samples_that_are_no_longer_swept_are_dropped():
    system, policy = Watched(CART_POLES[1]), Linear((4,), (1,), members=4, **tensor_options())
    rollout, rule = Rollout(system, policy, 5, BATCH), BySteps(FULL)
    rollout.forward(swing_up_states(0, BATCH, 1))
    for members in (4, 3, 2):
        rollout.backward([rule], SWING_UP, {rule: slice(0, 2 * members)})
        assert len(system.kept) == 5
    kept = set(system.kept)
    rollout.backward([rule], SWING_UP, {rule: slice(0, 4)})
    assert set(system.kept) == kept


@pytest.mark.float64
@pytest.mark.parametrize("segment", [None, 2])
def test_a_schedule_of_rules_keeps_few_launches(segment):
    system = Watched(CART_POLES[1])
    rollout = Rollout(system, Linear((4,), (1,), **tensor_options()), 5, BATCH, segment=segment)
    rollout.forward(swing_up_states(0, BATCH, 1))
    for step in range(100):
        rollout.backward([engine.PathRule(1.0, step / 100)], SWING_UP)
    assert len(system.kept) < 25 * len(rollout.plan.segments)

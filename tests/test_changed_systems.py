"""Systems whose numbers change after their kernels were compiled are refused, where kernels would not see it."""

import copy

import pytest
import taichi as ti
import torch
from conftest import StepCost, tensor_options, uniform

import engine
from engine import FULL, CartPole, Held, Rollout, RolloutTape, SettingError, VectorSystem
from policies import Linear

SENTENCE = r"^Expected {} with {} = .*, as its kernels were compiled, got .*; build another system\.$"


@ti.data_oriented
class Swing(VectorSystem):
    """A pendulum of a step of its own, which counts how often it was asked."""

    def __init__(self, dt=0.05):
        self.name, self.dt, self.asked, self.note = "swing", dt, 0, ""
        self.state_shape, self.control_shape = (2,), (1,)

    def prepare_step(self, *arrays, **options):
        self.asked += 1
        return super().prepare_step(*arrays, **options)

    @ti.func
    def advance(self, state, control):  # pyright: ignore[reportIncompatibleMethodOverride]
        rate = state[1] + self.dt * (control[0] - ti.sin(state[0]))
        return ti.Vector([state[0] + self.dt * rate, rate])

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):  # pyright: ignore[reportIncompatibleMethodOverride]
        rate = next_adjoint[1] + self.dt * next_adjoint[0]
        back = next_adjoint[0] - self.dt * ti.cos(state[0]) * rate
        return ti.Vector([back, rate]), ti.Vector([self.dt * rate])


def rollout_of(system):
    policy = Linear(system.state_shape, system.control_shape, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    return Rollout(system, policy, 3, 2)


def running(state, control, t):
    return state.square().sum(1)


OBJECTIVE = StepCost(running)


def test_another_step_is_refused_by_all_that_would_use_it():
    system = Swing()
    rollout, initial = rollout_of(system), uniform(1, 2, *system.state_shape)
    rollout.forward(initial)
    control = uniform(2, 2, *system.control_shape)
    system.step(initial, control)
    before, system.dt = system.dt, 0.2
    for attempt in (
        lambda: rollout.forward(initial),
        lambda: rollout_of(system),
        lambda: system.step(initial, control),
        lambda: system.pull_back(initial, control, initial),
        lambda: engine.gradcheck(system, initial, control),
    ):
        with pytest.raises(SettingError, match=SENTENCE.format("swing", "dt")):
            attempt()
    system.dt = before
    with RolloutTape(FULL):
        rollout(initial, OBJECTIVE)


def test_a_rollout_of_a_system_whose_kernels_are_compiled_for_its_numbers_is_built_for_them():
    system = CartPole()
    initial, kept = uniform(1, 2, 4), rollout_of(system)
    kept.forward(initial)
    system.dt = 0.2
    with pytest.raises(engine.AdjointError, match="got another constant of cart-pole since"):
        kept.backward([FULL], OBJECTIVE)
    with pytest.raises(
        SettingError, match=r"^Expected cart-pole with the numbers that its rollout was built for, .*\.$"
    ):
        kept.forward(initial)
    other = rollout_of(system)
    other.forward(initial)
    expected = rollout_of(CartPole(dt=0.2))
    expected.forward(initial)
    assert torch.equal(other.states, expected.states)


def test_a_held_system_is_looked_at_inside():
    inner = Swing()
    held = Held(inner, 2)
    rollout_of(held).forward(uniform(1, 2, 2))
    inner.dt = 0.1
    with pytest.raises(SettingError, match=SENTENCE.format("swing", "dt")):
        rollout_of(held)


def test_a_copy_and_what_no_kernel_reads_may_be_changed():
    system = Swing()
    initial, control = uniform(1, 2, 2), uniform(2, 2, 1)
    first = system.step(initial, control)
    other = copy.copy(system)
    other.dt = 0.1
    system.asked, system.note = 7, "seen"
    expected = Swing(0.1).step(initial, control)
    assert torch.equal(other.step(initial, control), expected)
    assert not torch.equal(expected, first)
    assert torch.equal(system.step(initial, control), first)


@pytest.mark.float64
def test_a_comparison_where_nothing_is_finite_says_so(capsys):
    system, state, control = Swing(), uniform(1, 2, 2), uniform(2, 2, 1)
    with pytest.raises(engine.ShapeError, match=r"^Expected finite states to compare at, got some that are not; .*\.$"):
        engine.gradcheck(system, state * torch.nan, control)
    with pytest.raises(engine.ShapeError, match="Expected finite controls to compare at"):
        engine.gradcheck(system, state, control / 0.0)
    assert not engine.gradcheck(Roots(), state, control)
    assert "Expected steps that are finite where they are compared, got another of sample 0" in capsys.readouterr().out


@ti.data_oriented
class Roots(Swing):
    """A step that is no number anywhere, and a pull-back that nothing shows to be wrong."""

    @ti.func
    def advance(self, state, control):
        return ti.Vector([ti.sqrt(state[0] - 100.0), state[1] + control[0]])

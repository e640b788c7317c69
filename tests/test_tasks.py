"""Tasks: where they start, what they cost, and which options they take."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import FULL, LinearSystem, Rollout, SettingError, ShapeError
from policies import Linear, Policy
from training import TASKS, Objective, Task, build_task
from training.starts import built, policy_for
from training.task import generator
from training.tasks.cart_pole import Upright
from training.tasks.integrator import Reach

pytestmark = pytest.mark.float64


@pytest.mark.parametrize("poles", [1, 4])
def test_cart_pole_starts_with_poles_hanging(poles):
    states = build_task("cart-pole", poles=poles).initial_states(4000, 0, "train", torch.float64)
    assert states.shape == (4000, 2 + 2 * poles)
    angles = states[:, 2 : 2 + poles]
    others = torch.cat([states[:, :2], states[:, 2 + poles :]], 1)
    for values, centre, width in ((angles, math.pi, math.pi / 6), (others, 0.0, 1.0)):
        assert (values - centre).abs().max() <= width
        # A uniform distribution: mean and variance within five standard errors.
        assert ((values.mean(0) - centre).abs() < 5 * width / math.sqrt(3 * 4000)).all()
        assert (values.var(0) / (width**2 / 3)).sub(1).abs().max() < 0.1


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_same_states_and_others_give_others(name):
    task = build_task(name)

    def draw(seed, stream):
        return task.initial_states(16, seed, stream, torch.float64)

    assert torch.equal(draw(3, "train"), draw(3, "train"))
    if name != "integrator":  # which always starts from one point
        assert not torch.equal(draw(3, "train"), draw(4, "train"))
        assert not torch.equal(draw(3, "train"), draw(3, "test"))


def test_streams_of_nearby_seeds_are_independent():
    draws = torch.stack(
        [
            torch.rand(200, generator=generator(seed, stream))
            for seed in range(5)
            for stream in ("policy", "train", "test", "order")
        ]
    )
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.35


def test_upright_is_zero_upright_and_two_hanging():
    state = torch.zeros(3, 6, dtype=torch.float64)
    state[1, 2:4] = math.pi
    state[2, 3] = math.pi
    torch.testing.assert_close(Upright(2).final(state), torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64))


def test_reach_is_half_the_squared_distance():
    assert Reach(2.0).final(torch.tensor([[-1.0], [2.0]])).tolist() == [4.5, 0.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cart-pool", {}, "a task among cart-pole"),
        ("cart-pole", {"polls": 2}, "options of cart-pole among poles, horizon, dt, got 'polls'"),
        ("cart-pole", {"poles": 0}, "cart-pole with at least 1 pole, got 0"),
        ("cart-pole", {"dt": -0.01}, "a time step dt above 0 s, got -0.01"),
        ("cart-pole", {"horizon": 0}, "a horizon of at least 1 step, got 0"),
        ("lqr", {"horizon": -3}, "a horizon of at least 1 step, got -3"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(SettingError, match=rf"^Expected {message}.*\.$"):
        build_task(name, **options)


def test_a_sampler_of_the_wrong_shape_is_refused():
    task = build_task("cart-pole")
    wrong = Task("wrong", task.system, task.objective, lambda count, _: torch.zeros(count, 3), 2, task.policy)
    with pytest.raises(ShapeError, match=r"Expected task 'wrong' to sample states of shape \[8, 4\], got \[8, 3\]\."):
        wrong.initial_states(8, 0, "train", torch.float64)


TASK = build_task("lqr", horizon=3)


class Takes(Objective):
    def final(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.zeros(1)


class Odd(LinearSystem):
    def __init__(self, **attributes):
        super().__init__([[1.0]], [[1.0]])
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": None}, "a name for a task, got None"),
        ({"policy": None}, "policy of a task to take members, dtype and device, got None"),
        ({"policy": Linear}, r"got the class Linear \(missing.*; write policy_for\(system, ...\)\."),
        ({"policy": Linear((2,), (1,))}, "got a Linear; write policy_for"),
        ({"policy": lambda members: None}, "an unexpected keyword argument"),
        ({"sample": None}, "sample of a task to take a count and a generator, got None"),
        ({"sample": lambda count: None}, "got function <lambda> .too many positional"),
        ({"objective": Takes()}, "final of Takes to take states"),
        ({"system": Odd(state_shape=())}, r"state_shape of Odd as sizes of at least 1, such as \(4,\), got \(\)"),
        ({"system": Odd(control_shape="1")}, "control_shape of Odd .* got '1'"),
        ({"system": Odd(prepare_step=lambda state: None)}, "prepare_step of Odd to take state, control and next_state"),
        ({"system": Odd(prepare_pull_back=None)}, "prepare_pull_back of Odd to take .* got None"),
    ],
)
def test_parts_that_do_not_fit_are_refused_as_the_task_is_made(given, said):
    with pytest.raises(SettingError, match=f"^Expected .*{said}"):
        replace(TASK, **given)


@pytest.mark.parametrize(
    ("states", "came"),
    [
        (None, "got None"),
        ([[0.0, 0.0]] * 4, "got a list"),
        (np.zeros((4, 2)), "got a ndarray"),
        (torch.zeros(4, 3), r"got \[4, 3\]"),
        (torch.zeros(4, 2, dtype=torch.complex64), "of real numbers, got torch.complex64"),
    ],
)
def test_a_sampler_of_anything_else_is_refused(states, came):
    task = replace(TASK, sample=lambda count, generator: states)
    with pytest.raises(ShapeError, match=r"^Expected task 'lqr' to sample states of shape \[4, 2\].*" + came):
        task.initial_states(4, 0, "train", torch.float64)


def test_a_system_that_prepares_nothing_is_named():
    system = Odd(prepare_step=lambda *arrays: None)
    with pytest.raises(SettingError, match=r"Expected prepare_step of Odd to return a launch, .* got None"):
        Rollout(system, Linear((1,), (1,), dtype=torch.float64), 2, 2)
    system = Odd(prepare_pull_back=lambda *arrays, **given: None, prepare_sweep=lambda arrays: None)
    rollout = Rollout(system, Linear((1,), (1,), dtype=torch.float64), 2, 2)
    rollout(torch.ones(2, 1, dtype=torch.float64))
    with pytest.raises(SettingError, match=r"Expected prepare_pull_back of Odd to return a launch, .* got None"):
        rollout.backward([FULL], Squares())


class Squares(Objective):
    def final(self, state):
        return state.square().sum(1)


def test_a_class_of_policies_that_is_not_whole_is_named():
    class Half(Policy):
        def forward(self, state):
            return state[..., :1]

    with pytest.raises(SettingError, match="Expected a class of policies that is whole, got Half without initialise"):
        policy_for(TASK.system, Half)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (None, "a policy such as MLP or Linear, got None"),
        (torch.nn.Linear(2, 1), "got a Linear; wrap it as ModulePolicy"),
        (Linear((2,), (1,), dtype=torch.float64), "a policy with 2 members, got 1"),
    ],
)
def test_a_factory_that_builds_anything_else_is_refused(policy, said):
    with pytest.raises(SettingError, match=f"^Expected .*{said}"):
        built(lambda members, dtype, device: policy, 2)

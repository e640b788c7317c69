"""Tasks as environments of Gymnasium: its own checks, returns beside rollouts' losses, starts anew, bad use."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tensor_options
from test_randomised import full_task

import engine
from engine import LibraryError, Noise, Observation, Rollout, SettingError, ShapeError
from policies import OpenLoop
from training import Objective, build_task, environments

gymnasium = pytest.importorskip("gymnasium", reason="needs the package gymnasium")

COUNT = 6
to_gymnasium: Any = environments.to_gymnasium
TASK = build_task("cart-pole", horizon=12)
HOPPER = build_task("hopper", horizon=90)


def play(environment, actions):
    """Returns of the first episode of each environment, its length, and whether it ended."""
    first, _ = environment.reset(seed=3)
    returns, lengths = np.zeros(COUNT), np.full(COUNT, -1)
    ended = np.zeros(COUNT, dtype=bool)
    for t, action in enumerate(actions):
        _, rewards, terminated, truncated, _ = environment.step(action)
        alive = lengths < 0
        returns[alive] += rewards[alive]
        ended |= alive & terminated
        lengths[alive & (terminated | truncated)] = t + 1
    return first, returns, lengths, ended


@pytest.mark.float64
@pytest.mark.filterwarnings("ignore:.*Box observation space.*:UserWarning")
def test_gymnasium_s_own_check_passes():
    from gymnasium.utils.env_checker import check_env

    for task in (TASK, HOPPER, full_task(control_bounds=(-1.0, 1.0))):
        check_env(to_gymnasium(task), skip_render_check=True)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("task", [TASK, HOPPER], ids=["cart-pole", "hopper"])
def test_returns_are_minus_the_losses_of_rollouts_with_the_same_controls(task):
    environment = to_gymnasium(task, COUNT)
    environment.action_space.seed(0)
    actions = [0.2 * environment.action_space.sample() for _ in range(task.horizon)]
    _, returns, lengths, ended = play(environment, actions)
    environment.reset(seed=3)
    initial = environment.episodes.states.clone()
    loop = OpenLoop(task.system.control_shape, task.horizon, members=COUNT, **tensor_options())
    loop.theta.data = torch.tensor(np.stack(actions, 1)).flatten(1).to(**tensor_options())
    rollout = Rollout(task.system, loop, task.horizon, COUNT, observation=Observation.clock(), end=task.end)
    losses = rollout.forward(initial, task.objective).cpu().double().numpy()
    accuracy = 1e-9 if engine.current().precision == "float64" else 2e-2
    np.testing.assert_allclose(returns, -losses, rtol=accuracy)
    at = np.full(COUNT, task.horizon) if rollout.parts.ends is None else rollout.parts.ends.at.cpu().numpy()
    if engine.current().precision == "float64":
        assert (lengths == at).all()
        assert (ended == (at < task.horizon)).all()
    if task is HOPPER:
        assert ended.any()


@pytest.mark.float64
def test_a_seed_settles_everything_and_one_environment_is_the_first_of_many():
    task = full_task(control_bounds=(-1.0, 1.0))
    environment = to_gymnasium(task, COUNT)
    environment.action_space.seed(0)
    actions = [environment.action_space.sample() for _ in range(30)]
    one, other = play(environment, actions), play(environment, actions)
    for found, again in zip(one, other, strict=True):
        assert np.array_equal(found, again)
    assert not np.array_equal(play(to_gymnasium(replace(task, noise=Noise(0.02, 0.1)), COUNT), actions)[1], one[1])
    assert len(set(environment.episodes._parameters.rows[:, 0].tolist())) == COUNT


@pytest.mark.float64
def test_an_episode_that_is_over_starts_anew_at_the_next_step():
    environment = to_gymnasium(TASK, COUNT)
    environment.reset(seed=0)
    action, observations, rewards = environment.action_space.sample(), np.zeros(0), np.zeros(0)
    for step in range(1, 14):
        observations, rewards, terminated, truncated, _ = environment.step(action)
        assert (truncated == (step == 12)).all()
        assert not terminated.any()
    assert not rewards.any()
    assert (environment.episodes.steps == 0).all()
    assert (np.abs(observations[:, 2] - np.pi) <= np.pi / 6).all()
    assert np.array_equal(observations, environment.episodes.states.numpy())


@pytest.mark.float64
def test_controls_are_limited_to_the_bounds():
    environment = to_gymnasium(TASK, COUNT)
    ends = []
    for push in (20.0, 1e6):
        environment.reset(seed=0)
        ends.append(environment.step(np.full((COUNT, 1), push))[0])
    assert np.array_equal(*ends)


@pytest.mark.parametrize("task", [TASK, HOPPER], ids=["one", "two"])
def test_controls_of_another_shape_are_refused(task):
    environment, (width,) = to_gymnasium(task, 3), task.system.control_shape
    environment.reset(seed=0)
    fits = {(3, width), (3,)} if width == 1 else {(3, width)}
    for shape in {(width, 3), (3 * width,), (3,), (3, width, 1), (2, width), (1,)} - fits:
        with pytest.raises(ShapeError, match=rf"^Expected controls of shape \(3, {width}\), got .*; give one for each"):
            environment.step(np.zeros(shape))
    environment.step([[0.0] * width] * 3)
    if width == 1:
        environment.step(np.zeros(3))


def test_what_cannot_be_an_environment_is_refused(monkeypatch):
    with pytest.raises(SettingError, match=r"^Expected a task whose controls are bounded, got quantum; give it some: "):
        to_gymnasium(build_task("quantum"))
    with pytest.raises(SettingError, match=r"^Expected at least 1 environment, got 0\.$"):
        to_gymnasium(TASK, 0)
    with pytest.raises(SettingError, match=r"^Expected a task such as build_task\('cart-pole'\), got 'cart-pole'\.$"):
        to_gymnasium("cart-pole")
    monkeypatch.setitem(__import__("sys").modules, "training.gymnasium_environments", None)
    with pytest.raises(LibraryError, match=r"^Expected the package gymnasium, 1.1 or newer, got: .*; install it .*\.$"):
        to_gymnasium(TASK)


def test_without_a_seed_environments_are_others_each_time():
    firsts = [to_gymnasium(TASK, 2).reset()[0][0] for _ in range(3)] + [to_gymnasium(TASK).reset()[0] for _ in range(2)]
    assert len({tuple(first) for first in firsts}) == 5
    environment = to_gymnasium(TASK)
    assert not np.array_equal(environment.reset()[0], environment.reset()[0])
    assert np.array_equal(environment.reset(seed=4)[0], environment.reset(seed=4)[0])


def costs(running=None, final=None):
    """An objective of these functions of states."""

    class Costs(Objective):
        def running(self, states, controls, steps):
            return None if running is None else running(states)

        def final(self, state):
            return None if final is None else final(state)

    return Costs()


REFUSED = {
    "states of another shape": ({"sample": lambda n, g: torch.rand(n, 1, generator=g)}, "to sample states of shape"),
    "one state for all": ({"sample": lambda n, g: torch.zeros(4)}, "to sample states of shape"),
    "complex states": ({"sample": lambda n, g: torch.zeros(n, 4) * 1j}, "of real numbers"),
    "no tensor": ({"sample": lambda n, g: np.zeros((n, 4))}, "to sample states of shape"),
    "its own draws": ({"sample": lambda n, g: torch.rand(n, 4)}, "pass generator=generator"),
    "a start that is over": ({"end": lambda s: s[:, 0] < 2.0}, "^Expected initial states that have not ended"),
    "an end as numbers": ({"end": lambda s: s[:, 0]}, "^Expected an end as booleans"),
    "an end of components": ({"end": lambda s: s > 1e9}, "^Expected an end as booleans"),
    "an end without a tensor": ({"end": lambda s: False}, "^Expected an end as booleans"),
    "a mean": ({"objective": costs(final=lambda s: s.square().mean())}, "^Expected a final cost for each sample"),
    "a column": ({"objective": costs(final=lambda s: s[:, :1])}, "^Expected a final cost for each sample"),
    "columns": ({"objective": costs(running=lambda s: s[..., :1])}, "^Expected running costs"),
    "steps alone": ({"objective": costs(running=lambda s: s.sum((1, 2)))}, "^Expected running costs"),
}


@pytest.mark.parametrize("count", [None, 4], ids=["one", "several"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_of_a_task_environments_refuse(name, count):
    changes, told = REFUSED[name]

    def used():
        environment = to_gymnasium(replace(TASK, **changes), *([] if count is None else [count]))
        environment.reset(seed=0)
        for _ in range(TASK.horizon):
            environment.step(np.zeros(environment.action_space.shape))

    with pytest.raises((SettingError, ShapeError), match=told):
        used()


def test_steps_and_actions_that_are_none_are_refused():
    environment = to_gymnasium(TASK)
    with pytest.raises(SettingError, match=r"^Expected episodes that have started, .* call reset\(\) first\.$"):
        environment.step(np.zeros(1))
    environment.reset(seed=0)
    for action, told in (
        (np.zeros((1, 1)), r"^Expected an action of shape \(1,\), got \(1, 1\)\.$"),
        (None, "^Expected controls as real numbers"),
        (np.array([1j]), "^Expected controls as real"),
    ):
        with pytest.raises(ShapeError, match=told):
            environment.step(action)
    environment.step(0.5)


def test_a_table_with_a_cost_for_every_step_is_never_asked_beyond_it():
    path = torch.linspace(0.0, 1.0, TASK.horizon, **tensor_options())

    class Tracking(Objective):
        def running(self, states, controls, steps):
            return (states[..., 0] - path[steps].view(-1, 1)).square()

    environment = to_gymnasium(replace(TASK, objective=Tracking()), 3)
    environment.reset(seed=0)
    for _ in range(2 * TASK.horizon + 3):
        environment.step(np.zeros((3, 1)))

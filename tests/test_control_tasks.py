"""The tasks hopper, kuramoto-sivashinsky and ball-wall: what they see, cost and end at, and what gradients say."""

import math
from typing import Any

import pytest
import torch
from conftest import relative_error, tensor_options, uniform

import engine
from engine import FULL, Rollout
from engine.systems import BallWall, Held, KuramotoSivashinsky
from policies import OpenLoop
from training import Member, Trainer, TrainingSettings, build_task
from training.tasks.hopper import fallen, gait

WALL = BallWall()


def flights(launch, dt=0.02):
    """Where balls launched from the origin are stopped, [B]: parabolas in closed form, sampled as Euler's steps are."""
    places = []
    for v_x, v_y in launch.tolist():
        x, y, velocity, clock = 0.0, 0.0, v_y, 0
        while True:
            after = velocity if clock == 0 else velocity - 9.8 * dt
            to_x, to_y = x + dt * v_x, y + dt * after
            end_x = to_x if to_y >= 0 else x + (to_x - x) * y / (y - to_y)
            if x < 2.0 <= end_x and y + (to_y - y) * (2.0 - x) / (to_x - x) < 1.0:
                places.append(2.0)
                break
            if to_y < 0:
                places.append(end_x)
                break
            x, y, velocity, clock = to_x, to_y, after, clock + 1
    return torch.tensor(places, dtype=torch.float64)


def thrown(launch, horizon=80):
    state = torch.zeros(len(launch), 5, **tensor_options())
    for _ in range(horizon):
        state = WALL.step(state, launch)
    return state


LAUNCHES = [(1.0, 2.0), (3.0, 2.0), (4.0, 3.0), (4.5, 5.0), (3.5, 6.0)]


@pytest.mark.cuda
@pytest.mark.vulkan
def test_balls_land_where_their_parabolas_do_or_stop_at_the_wall():
    launch = torch.tensor(LAUNCHES, **tensor_options())
    state = thrown(launch)
    expected = flights(launch.double())
    assert expected[0] < 2.0
    assert expected[2] == 2.0
    assert (expected[3:] > 3.0).all()
    assert relative_error(state[:, 0], expected) < (1e-12 if state.dtype == torch.float64 else 1e-4)
    assert not state[:, 1:4].any()


@pytest.mark.float64
def test_derivatives_of_flights_are_those_of_the_branch_that_was_taken():
    state = torch.tensor(
        [(1.9, 0.9, 3.0, -1.0, 5), (1.9, 1.4, 3.0, -1.0, 5), (2.5, 0.03, 3.0, -4.0, 9), (0.0, 0.0, 0, 0, 0)]
    )
    state, control = state.to(**tensor_options()), torch.tensor([[4.0, 3.0]] * 4, **tensor_options())
    assert engine.gradcheck(WALL, state, control)


@pytest.mark.float64
def test_the_gradient_of_a_ball_that_the_wall_stops_is_empty_and_over_noise_it_is_biased():
    task = build_task("ball-wall", noise=1.0)
    loop = OpenLoop((2,), 1, **tensor_options())
    count = 20000
    rollout = Rollout(task.system, loop, task.horizon, count, observation=engine.Observation.clock(), noise=task.noise)
    initial = torch.zeros(count, 5, **tensor_options())

    def mean_loss(change=0.0):
        rollout.seed_noise(0)
        loop.theta.data.fill_(0.0)
        loop.theta.data[0, 1] = change
        return rollout.forward(initial, task.objective)

    losses = mean_loss()
    found = rollout.backward([FULL], task.objective)
    stopped = rollout.final_state[:, 0] == 2.0
    assert 0.3 < stopped.double().mean() < 0.9
    # What a stopped ball says of its launch is nothing at all.
    loop.theta.data.fill_(0.0)
    alone = Rollout(task.system, loop, task.horizon, 1, observation=engine.Observation.clock())
    alone(initial[:1])
    with pytest.warns(engine.EvenflowWarning, match="gradient is exactly zero"):
        empty = alone.backward([FULL], task.objective)
    assert not empty.parameters[FULL].any()
    # The upward launch that would clear the wall: the mean loss falls with it, by far more than the mean gradient says.
    step = 0.2
    difference = (mean_loss(step).mean() - mean_loss(-step).mean()) / (2 * step)
    error = 5 * losses.std() / math.sqrt(count) / step
    assert difference + error < -0.01
    assert found.parameters[FULL][0, 1] > difference + error


@pytest.mark.float64
def test_a_hopper_ends_where_it_falls_and_feels_everything_but_its_place():
    task: Any = build_task("hopper", horizon=100)
    states = task.initial_states(16, 0, "train", torch.float64)
    assert not fallen(states).any()
    state = torch.zeros(3, 10, **tensor_options())
    state[:, 1] = torch.tensor([0.5, 0.2, 0.5])
    state[2, 2] = -2.1
    assert fallen(state).tolist() == [False, True, True]
    assert task.observation is not None
    here = task.observation(states[None], torch.zeros(1), {})
    states[:, [0, 3]] += 7.0
    assert relative_error(task.observation(states[None], torch.zeros(1), {}), here) < 1e-12
    assert here.shape == (1, 16, 10)
    states = task.initial_states(4, 0, "train", torch.float64)
    policy = task.policy(1, **tensor_options())
    rollout = Rollout(task.system, policy, task.horizon, 4, **task.parts)
    losses = rollout.forward(states, task.objective)
    ends = rollout.parts.ends.at
    assert (ends < task.horizon).any()  # without thrust it tips over
    for b, at in enumerate(ends.tolist()):
        visited, velocity = rollout.states[:at, b], rollout.states[:at, b, 5]
        cost = (2 * velocity - 1).square() + 0.1 * visited[:, 2].square() + 10 * (visited[:, 1] - 0.5).square()
        low, turned = 10 * (0.35 - rollout.states[at, b, 1]), rollout.states[at, b, 2].abs() - 1
        fall = 2 * (max(low, 0) ** 2 + max(turned, 0) ** 2)
        assert losses[b] == pytest.approx(float(cost.sum() / 100 + fall), rel=1e-9)
        assert (fall >= 2) == (at < 100)


def test_a_gait_is_told_by_the_height_of_the_foot():
    states = torch.zeros(6, 3, 10, **tensor_options())
    states[:, 0, 4] = torch.tensor([0.0, 0.03, 0.05, 0.01, 0.04, 0.0])  # up twice, down twice
    states[:, 1, 4] = torch.tensor([0.1, 0.1, 0.0, 0.0, 0.0, 0.0])  # falls down from the start, over after 4 steps
    states[:, 2, 0] = torch.arange(6) * 0.1  # slides
    found = gait(states, torch.tensor([5, 4, 5]), seconds=0.5, softness=0.01)
    assert found.flight.tolist() == pytest.approx([3 / 5, 1 / 4, 0])
    assert found.touchdowns.tolist() == [2, 1, 0]
    assert found.speed.tolist() == pytest.approx([0, 0, 0.2])


@pytest.mark.float64
def test_the_flow_is_seen_at_eight_places_and_costs_its_distance_from_the_target():
    task: Any = build_task("kuramoto-sivashinsky", horizon=3, target=2)
    flow = KuramotoSivashinsky()
    assert isinstance(task.system, Held)
    assert task.system.steps * flow.dt == pytest.approx(0.5)
    assert relative_error(task.objective.goal, flow.equilibrium(2)) == 0
    states = 2.0 * uniform(0, 4, 2, 64)
    assert task.observation is not None
    seen = task.observation(states, torch.arange(4), {})
    assert torch.equal(seen, states[..., ::8])
    controls = uniform(1, 3, 2, 4)
    found = task.objective.running(states[:3], controls, torch.arange(3)).sum(0) + task.objective.final(states[3])
    away = (states[1:] - torch.as_tensor(flow.equilibrium(2)).to(states)).square().mean(2).mean(0)
    torch.testing.assert_close(found, away + 0.01 * controls.square().mean(2).mean(0))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("name", "options", "rate", "epochs"),
    [("hopper", {"horizon": 10}, 1e-2, 20), ("kuramoto-sivashinsky", {"horizon": 12}, 3e-2, 4)],
)
def test_a_few_updates_lower_the_loss_under_every_variant(name, options, rate, epochs):
    from training.gradients import gradient_named

    task = build_task(name, **options)
    members = [Member(gradient_named(text).estimator, learning_rate=rate) for text in "RMC"]
    trainer = Trainer(task, members, TrainingSettings(batch_size=8, train_samples=16, test_samples=8))
    before = trainer.test()
    list(trainer.fit(epochs))
    assert (trainer.test() < 0.97 * before).all()

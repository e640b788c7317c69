"""Short horizons: windows by an independent loop under autograd, targets by their recursion, an exact value, bits."""

# pyright: reportIncompatibleMethodOverride=false

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import reference
import torch
from conftest import relative_error, swing_up_states, tensor_options, uniform

from engine import FULL, PHYSICS_ONLY, CartPole, LinearSystem, Noise, Observation, Rollout, SettingError
from policies import MLP, Linear, OpenLoop
from training import Experiment, Member, Objective, Trainer, TrainingSettings, build_task
from training.critic import TRACE, mini_batches
from training.gradients import gradient_named, text_of
from training.short_horizons import Short, Windows
from training.sources import passes
from training.starts import FreshStarts
from training.window_cost import START

pytestmark = pytest.mark.float64

CART_POLE = CartPole(1)
HORIZON, STEPS, BATCH = 10, 4, 3
RULES = {"R": FULL, "M": PHYSICS_ONLY}


class Timed(Objective):
    """Costs that depend on the time and on a parameter of the sample."""

    def __init__(self, has_final):
        self.has_final, self.goal, self.parameters = has_final, 0.5, {"goal": 0.5}

    def given(self, parameters):
        other = Timed(self.has_final)
        other.goal = parameters.get("goal", 0.5)
        return other

    def running(self, states, controls, steps):
        near = (states[..., 0] - self.goal).square() * (1.0 + 0.1 * steps.view(-1, 1))
        return near + 0.05 * controls.square().sum(-1)

    def final(self, state):
        return reference.swing_up_cost(state) + (state[:, 0] - self.goal).square() if self.has_final else None


def seen(states, steps, parameters):
    """Something of the state, the time and the parameter."""
    time = 0.1 * steps.to(states.dtype).view(-1, 1).expand(states.shape[:2])
    return torch.stack([states[..., 0], states[..., 2].cos(), states[..., 3], time, parameters["goal"]], -1)


def fallen(states):
    return states[:, 0].abs() > 1.0


def timed_task(has_final=True, end=fallen):
    like = build_task("cart-pole", horizon=HORIZON)

    def sample(count, generator):
        states = like.sample(count, generator)
        states[:, 0] *= 0.9
        states[:, 1] *= 4.0  # so that the cart of some leaves
        return states

    return replace(
        like, system=CART_POLE, objective=Timed(has_final), sample=sample, end=end, observation=Observation(seen, (5,)),
        randomise=(("goal", 0.2, 0.8),), policy=lambda **options: MLP((5,), (1,), hidden=(3,), **options),
    )  # fmt: skip


def windows_of(task, shorts, seeds=(0, 1)):
    made = Windows(
        task, lambda members: task.policy(members=members, **tensor_options()), dict(enumerate(shorts)), seeds, BATCH
    )
    theta = uniform(3, len(shorts), made.rollout.controller.parameter_count, low=-0.8, high=0.8)
    return made, theta


def network(theta, widths, x):
    """The reference's perceptron with the weights of a row."""
    weights, biases, first = [], [], 0
    for inputs, outputs in pairwise(widths):
        layer = theta[first : first + (inputs + 1) * outputs].view(inputs + 1, outputs)
        weights.append(layer[:-1])
        biases.append(layer[-1])
        first += layer.numel()
    return reference.mlp(weights, biases, x)


def followed(task, theta, value, state, start, goal, short):
    """One sample's window, step by step: loss, costs, observations, what is still to be paid, and how it ended."""
    objective = Timed(task.objective.has_final)
    objective.goal = goal
    state, loss, costs, shown = state[None], torch.zeros(()).to(theta), [], []
    stop, ended, over = 0, False, False

    def shown_to_critic(observation, time):
        rest = observation.new_tensor([[1.0 - time / task.horizon]])
        return torch.cat([observation, rest], 1) if objective.has_final else observation

    def look(state, time):
        return seen(state[None], torch.tensor([time]), {"goal": goal.view(1, 1)})[0]

    for step in range(short.steps):
        time = start + step
        observation = look(state.detach() if short.of is PHYSICS_ONLY else state, time)
        control = network(theta, (5, 3, 1), observation)
        cost = objective.running(state[None], control[None], torch.tensor([time]))[0, 0]
        shown.append(shown_to_critic(observation.detach(), time)[0])
        costs.append(cost.detach())
        loss = loss + short.discount**step * cost
        state, stop = reference.cart_pole_step(state, control), step + 1
        ended, over = bool((task.end is not None) and task.end(state)[0]), time + 1 == task.horizon
        if ended or over:
            break
    final = objective.final(state)
    if ended:
        left, how = (torch.zeros(()).to(theta) if final is None else final[0]), "ended"
    elif over and final is not None:
        left, how = final[0], f"horizon after {stop}"
    else:
        left = value(shown_to_critic(look(state, start + stop), start + stop))[0, 0]
        how = f"horizon after {stop}" if over else "goes on"
    loss = loss + short.discount**stop * left
    return SimpleNamespace(loss=loss, costs=costs, shown=shown, left=left.detach(), state=state.detach()[0], how=how)


@pytest.mark.parametrize("has_final", [True, False])
def test_windows_are_those_of_an_independent_loop(has_final, monkeypatch):
    task = timed_task(has_final)
    shorts = [Short(RULES["R"], STEPS), Short(RULES["M"], STEPS, 0.9)]
    windows, theta = windows_of(task, shorts)
    each, kinds = len(windows._states) // 2, set()
    assert each == 8  # ⌈3·10/4⌉
    assert windows._rows[:each, -1].tolist() == [0, 4, 8, 0, 4, 8, 0, 4]
    learned = []
    monkeypatch.setattr(windows.critic, "learn", lambda *arguments: learned.append(arguments))
    for _ in range(5):
        states, rows = windows._states.clone(), windows._rows.clone()
        critics = windows.critic.tensors()["follower"].clone()
        losses, gradients = windows.gradients(theta)
        observations, targets, counted = learned.pop()
        for member, short in enumerate(shorts):
            own = theta[member].clone().requires_grad_()

            def value(observation, critic=critics[member]):
                return network(critic, (observation.shape[1], 64, 64, 1), observation)

            found = [
                followed(task, own, value, states[row], int(rows[row, -1]), rows[row, 0], short)
                for row in range(member * each, (member + 1) * each)
            ]
            loss = torch.stack([one.loss for one in found]).mean()
            (expected,) = torch.autograd.grad(loss, own)
            assert relative_error(losses[member], loss) < 1e-10
            assert relative_error(gradients[short][member], expected) < 1e-10
            for row, one in enumerate(found, member * each):
                kinds.add(one.how)
                stop = len(one.costs)
                assert counted[:, row].tolist() == [True] * stop + [False] * (STEPS - stop)
                target = one.left
                for step in reversed(range(stop)):
                    ahead = one.left if step == stop - 1 else value(one.shown[step + 1][None])[0, 0]
                    target = one.costs[step] + short.discount * ((1 - TRACE) * ahead + TRACE * target)
                    torch.testing.assert_close(targets[step, row], target, rtol=1e-10, atol=1e-12)
                    torch.testing.assert_close(observations[step, row], one.shown[step], rtol=1e-10, atol=1e-12)
                if one.how == "goes on":
                    torch.testing.assert_close(windows._states[row], one.state, rtol=1e-10, atol=1e-12)
                    assert windows._rows[row].tolist() == [rows[row, 0], rows[row, -1] + STEPS]
                else:
                    assert windows._rows[row, -1] == 0
                    assert windows._rows[row, 0] != rows[row, 0]
                    assert abs(float(windows._states[row, 0])) <= 0.9
    assert kinds == {"ended", "horizon after 2", "goes on"}


def test_with_an_exact_value_windows_make_the_gradient_of_the_whole_horizon(monkeypatch):
    """LQR with V = xᵀPx of the present policy: what windows have in common with a value, P = Q + KᵀrK + CᵀPC."""
    numbers = [[1.0, 0.1], [-0.2, 0.97]], [[0.0], [0.1]], [[-1.0, -0.5]], [[1.0, 0.0], [0.0, 0.1]]
    A, B, K, Q = (torch.tensor(rows, dtype=torch.float64) for rows in numbers)
    Q, closed, P = Q + 0.05 * K.T @ K, A + B @ K, torch.zeros_like(Q)
    for _ in range(4000):
        P = Q + closed.T @ P @ closed

    class Cost(Objective):
        def running(self, states, controls, steps):
            return states[..., 0].square() + 0.1 * states[..., 1].square() + 0.05 * controls.square().sum(-1)

        def final(self, state):
            return torch.einsum("bi,ij,bj->b", state, P.to(state), state)

    steps, cost = 4, Cost()
    task = replace(
        build_task("lqr", horizon=12), system=LinearSystem(A.tolist(), B.tolist()), objective=cost,
        policy=lambda **options: Linear((2,), (1,), bias=False, **options),
    )  # fmt: skip
    windows = Windows(task, lambda members: task.policy(members=members, **tensor_options()),
                      {0: Short(FULL, steps, 1.0)}, [0], 1)  # fmt: skip
    monkeypatch.setattr(windows._cost, "_value", lambda seen: cost.final(seen[:, :2]))
    policy = task.policy(members=1, **tensor_options())
    policy.theta.data.copy_(K)
    whole = Rollout(task.system, policy, 12, 1)
    whole.forward(uniform(0, 1, 2))
    expected = whole.backward([FULL], cost).parameters[FULL]
    windows._states.copy_(whole.states.detach()[[0, 4, 8], 0])
    found, gradients = windows.gradients(policy.theta.detach().clone())
    assert relative_error(3 * gradients[windows.shorts[0]], expected) < 1e-10
    # Every window is worth what is still to be paid from its start on.
    assert float(found) == pytest.approx(float(cost.final(whole.states.detach()[[0, 4, 8], 0]).mean()), rel=1e-10)


def test_over_the_whole_horizon_it_is_the_sweep():
    """h = T and γ = 1: no value is asked for, and no environment waits."""
    task = replace(timed_task(end=None), observation=None, randomise=(), policy=build_task("cart-pole").policy)
    short = Short(FULL, HORIZON, 1.0)
    windows, theta = windows_of(task, [short])
    theta *= 0.3
    states = windows._states.clone()
    assert len(states) == BATCH
    policy = task.policy(members=1, **tensor_options())
    policy.theta.data.copy_(theta)
    rollout = Rollout(CART_POLE, policy, HORIZON, BATCH)
    losses = rollout.forward(states, task.objective)
    assert losses is not None
    found, gradients = windows.gradients(theta)
    assert float(found) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert relative_error(gradients[short], rollout.backward([FULL], task.objective).parameters[FULL]) < 1e-10
    assert passes(short) == passes(gradient_named("R").estimator) == 2


SETTINGS = TrainingSettings(batch_size=4, train_samples=8, test_samples=4)


def test_starts_without_end_are_the_same_however_they_are_asked_for():
    task = timed_task()
    states, rows = FreshStarts(task, 3)(0, 600)
    assert rows is not None
    assert len({float(value) for value in states[:, 0]}) == len({float(value) for value in rows[:, 0]}) == 600
    for first, count in ((500, 20), (250, 12), (0, 1), (255, 300)):
        some, of_them = FreshStarts(task, 3)(first, count)
        assert of_them is not None
        assert torch.equal(some, states[first : first + count])
        assert torch.equal(of_them, rows[first : first + count])


def noisy_task():
    return replace(timed_task(), noise=Noise(state=0.01, control=0.1))


def members(*texts):
    return [Member(gradient_named(text).estimator, seed) for seed, text in enumerate(texts)]


def test_a_training_goes_on_to_the_bit_and_members_are_what_they_are_alone():
    chosen = members("short(M, 4)", "R", "short(random-cut(R, 0.5), 4, 0.9)", "short(R, 3)", "short(M, 4)")
    whole, first, second = (Trainer(noisy_task(), chosen, SETTINGS) for _ in range(3))
    expected = list(whole.fit(3))[2]
    list(first.fit(2))
    second.load(2, {name: value.clone() for name, value in first.state().items()}, {})
    assert list(second.fit(3)) == [expected]
    for name, value in whole.state().items():
        assert torch.equal(value, second.state()[name]), name
    assert len({tuple(row) for row in whole.policy.theta.tolist()}) == 5
    for index in (0, 3, 4):
        alone = Trainer(noisy_task(), [chosen[index]], SETTINGS)
        record = list(alone.fit(3))[2]
        assert relative_error(whole.policy.theta[index], alone.policy.theta[0]) < 1e-9
        assert record.train_loss[0] == pytest.approx(expected.train_loss[index], rel=1e-9)


def test_an_epoch_that_is_stopped_leaves_environments_and_critics_as_they_were():
    trainer = Trainer(noisy_task(), members("short(R, 4)"), SETTINGS)
    list(trainer.fit(1))
    before, answers = {name: value.clone() for name, value in trainer.state().items()}, iter([False, True])
    assert trainer.try_epoch(lambda: next(answers)) is None
    assert all(torch.equal(value, before[name]) for name, value in trainer.state().items())


def test_open_loop_has_the_controls_of_its_own_steps():
    """Windows that begin at 8 of 10 steps have the last two controls; so a gradient reaches all of them."""
    like = build_task("cart-pole", horizon=HORIZON)
    task = replace(like, system=CART_POLE, observation=Observation.clock(), objective=Timed(True),
                   policy=lambda **options: OpenLoop((1,), HORIZON, **options))  # fmt: skip
    windows, _ = windows_of(task, [Short(FULL, STEPS)])
    windows._rows[:, -1] = 8.0
    windows._states.copy_(swing_up_states(0, len(windows._states), 1))
    _, gradients = windows.gradients(torch.zeros(1, HORIZON, **tensor_options()))
    assert (gradients[windows.shorts[0]][0] != 0).tolist() == [False] * 8 + [True] * 2


def test_a_member_that_diverges_is_frozen_and_the_others_go_on():
    trainer = Trainer(noisy_task(), members("short(R, 4)", "short(R, 4)"), SETTINGS)
    trainer.policy.theta.data[0] = 1e200
    list(trainer.fit(2))
    assert list(trainer.divergences) == [0]
    assert trainer.divergences[0].cause.endswith("is not finite")
    assert torch.isfinite(trainer.policy.theta[1]).all()
    alone = Trainer(noisy_task(), [trainer.members[1]], SETTINGS)
    list(alone.fit(2))
    assert relative_error(trainer.policy.theta[1], alone.policy.theta[0]) < 1e-9


@pytest.mark.parametrize(("steps", "environments"), [(32, 8), (32, 4), (7, 16), (9, 5), (32, 1), (1, 3), (1, 1)])
def test_every_mini_batch_of_the_critic_holds_as_many_steps_and_environments_as_it_can(steps, environments):
    parts = mini_batches(steps, environments)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(steps * environments))
    assert len(parts) == min(4, steps + environments - 1)
    for rows in parts:
        if steps >= 4:
            assert len((rows % environments).unique()) == environments
        if environments >= 4:
            assert len((rows // environments).unique()) == steps


def test_it_has_a_name_and_refuses_nonsense():
    assert gradient_named("short(r, 32)").estimator == Short(FULL, 32, 0.99)
    assert text_of(Short(PHYSICS_ONLY, 8, 1.0)) == "short(M, 8, 1)"
    for text, message in {
        "short(R, 0)": "at least 1 step",
        "short(R, 2.5)": "a whole number as steps in short",
        "short(R, 8, 0)": "a discount above 0 and at most 1",
        "short(R, 8, 1.5)": "a discount above 0 and at most 1",
        "short(R)": "without steps",
        "short(C, 32)": "a rule as of in short",
        "short(short(R, 8), 8)": "a rule as of in short",
        "agree(short(M, 8), R)": "environments of its own",
        "cautious(short(R, 8))": "environments of its own",
        "clip-norm(short(R, 8), 1)": "a rule as of",
    }.items():
        with pytest.raises(SettingError, match=message):
            gradient_named(text)
    long = Experiment("cart-pole", {"horizon": HORIZON}, gradients=("short(R, 11)",), seeds=(0,), epochs=1)
    with pytest.raises(SettingError, match="of at most the 10 steps of cart-pole, got 11"):
        long.trainer()
    assert START.isidentifier()

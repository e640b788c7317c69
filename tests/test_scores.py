"""Score estimators: their formula by torch, and that their means are R and M; mixtures with sweeps."""

import math
import re
from dataclasses import replace

import pytest
import reference
import torch
from conftest import StepCost, relative_error, swing_up_states, tensor_options, uniform

from engine import FULL, PHYSICS_ONLY, CartPole, LinearSystem, Noise, Rollout, SettingError
from policies import MLP, Linear
from training import Experiment, Member, Objective, Quadratic, Trainer, TrainingSettings, build_task
from training.checkpoint import continue_from, write_checkpoint
from training.gradients import gradient_named, text_of
from training.samples import Mix
from training.scores import Copies, PhysicsScore, Score
from training.task import MOST_SEEDS

pytestmark = pytest.mark.float64

A, B = torch.tensor([[1.0, 0.1], [-0.2, 0.97]]), torch.tensor([[0.0], [0.1]])
CART_POLE, LINEAR = CartPole(1), LinearSystem(A, B)
LIMITS = {Score: FULL, PhysicsScore: PHYSICS_ONLY}


def running(state, control, t):
    return (0.5 + 0.01 * t) * state.square().sum(1) + 0.2 * control.square().sum(1)


class Judged(StepCost, Objective):
    """The oracle's costs as an objective."""


def task_of(system, horizon):
    final = reference.swing_up_cost if system is CART_POLE else (lambda state: state.square().sum(1))
    like = build_task("integrator")
    return replace(like, system=system, objective=Judged(running, final), horizon=horizon)


def policy_of(system, members=1):
    if system is LINEAR:
        policy = Linear((2,), (1,), members=members, **tensor_options())
        policy.theta.data.copy_(torch.tensor([[-1.0, 0.5, 0.1]]).expand(members, -1))
    else:
        policy = MLP((4,), (1,), hidden=(3,), members=members, **tensor_options())
        policy.theta.data.copy_(uniform(0, *policy.theta.shape, low=-0.3, high=0.3))
        policy.theta.data[:, 15:] *= 60.0  # not saturated, and with forces that make R another than M
    return policy


def swept(system, policy, horizon, initial, rule):
    """The gradient of a sweep [n]."""
    rollout = Rollout(system, policy, horizon, len(initial))
    task = task_of(system, horizon)
    rollout.forward(initial, task.objective)
    return rollout.backward([rule], task.objective).parameters[rule][0]


@pytest.mark.parametrize("kind", LIMITS)
def test_scores_equal_their_formula(kind):
    """Every copy stepped by the reference; Πᵀ by autograd through a policy that sees states cut from the graph."""
    sigma, copies, horizon, starts, members = 0.3, 6, 5, 3, 2
    policy = policy_of(CART_POLE, members)
    initial, noise = swing_up_states(1, members * starts, 1), uniform(2, members * starts, copies // 2, horizon, 1)
    found = Copies(task_of(CART_POLE, horizon), policy, kind(sigma, copies), starts)
    mean, apart = found.gradients(initial, noise), policy_of(CART_POLE, members * starts)
    apart.theta.data.copy_(policy.theta.data.repeat_interleave(starts, 0))
    each = Copies(task_of(CART_POLE, horizon), apart, kind(sigma, copies), 1).gradients(initial, noise)
    each = each.view(members, starts, -1)
    for member in range(members):
        theta = policy.theta.detach()[member].clone().requires_grad_()
        layers = [theta[: 5 * 3].view(5, 3), theta[5 * 3 :].view(4, 1)]

        def act(state, layers=layers):
            return reference.mlp([layer[:-1] for layer in layers], [layer[-1] for layer in layers], state)

        for start in range(starts):
            row = member * starts + start
            losses, scores = [], []
            for w in (torch.zeros_like(noise[row, 0]), *noise[row], *-noise[row]):
                x = shown = initial[row : row + 1]
                loss, score = 0.0, torch.zeros(())
                for t in range(horizon):
                    mean_control = act(shown.detach())
                    control = mean_control.detach() + sigma * w[t]
                    loss = loss + float(running(x, control, t))
                    score = score + (mean_control * w[t]).sum()
                    x = reference.cart_pole_step(x, control)
                    calm = reference.cart_pole_step(shown, act(shown).detach())
                    shown = x if kind is Score else calm
                losses.append(loss + float(reference.swing_up_cost(x)))
                scores.append(score)
            weights = []
            for copy in range(1, copies + 1):
                pair = {copy, (copy + copies // 2 - 1) % copies + 1}
                others = [loss for index, loss in enumerate(losses) if index not in pair]
                weights.append((losses[copy] - sum(others) / len(others)) / sigma / copies)
            total = torch.stack([weight * score for weight, score in zip(weights, scores[1:], strict=True)]).sum()
            (expected,) = torch.autograd.grad(total, theta, retain_graph=True)
            assert relative_error(each[member, start], expected) < 1e-10
        assert relative_error(mean[member], each[member].mean(0)) < 1e-12


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("system", [LINEAR, CART_POLE], ids=["linear", "cart-pole"])
def test_the_mean_of_a_hundred_thousand_copies_is_the_gradient_of_a_sweep(system, kind):
    horizon, sigma, copies, repeats = 15, 1e-3, 2000, 50
    policy, initial = policy_of(system), uniform(3, 1, 2) if system is LINEAR else swing_up_states(3, 1, 1)
    found = Copies(task_of(system, horizon), policy, kind(sigma, copies), 1)
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, copies // 2, horizon, 1, generator=draw, dtype=torch.float64) for _ in range(repeats)]
    drawn = torch.stack([found.gradients(initial, w)[0] for w in noise])
    error = drawn.std(0) / math.sqrt(repeats)
    expected = swept(system, policy, horizon, initial, LIMITS[kind])
    other = swept(system, policy, horizon, initial, LIMITS[PhysicsScore if kind is Score else Score])
    assert ((drawn.mean(0) - expected).abs() < 3 * error).all()
    assert error.norm() < 0.05 * expected.norm()
    assert ((drawn.mean(0) - other).abs() > 5 * error).any()  # the two limits are told apart


@pytest.mark.parametrize("kind", LIMITS)
def test_a_score_tends_to_its_sweep_as_the_noise_goes_to_zero(kind):
    """With one and the same noise what is left is the error of its finite number, which falls no more."""
    policy, initial, horizon = policy_of(CART_POLE), swing_up_states(4, 1, 1), 10
    noise = torch.randn(1, 1000, horizon, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = [Copies(task_of(CART_POLE, horizon), policy, kind(s, 2000), 1).gradients(initial, noise) for s in SIGMAS]
    steps = [relative_error(one, found[-1]) for one in found[:-1]]
    assert steps[0] > 10 * steps[1] > 100 * steps[2]  # second order in σ
    expected = swept(CART_POLE, policy, horizon, initial, LIMITS[kind])
    assert relative_error(found[-1][0], expected) < 0.2


SIGMAS = (3.0, 0.3, 0.03, 1e-4)
LOUD = 0.7  # the standard deviation of a task's own noise


@pytest.mark.parametrize("copies", [2, 4, 6])
@pytest.mark.parametrize("noise", [None, Noise(state=LOUD)], ids=["calm", "loud"])
@pytest.mark.parametrize("kind", LIMITS)
def test_a_score_has_the_mean_that_it_names_at_any_noise(kind, noise, copies):
    """x' = x + u, u = θx, half the sum of squares: second moments of x, and of ∂x/∂θ beside x̄, by hand."""
    horizon, sigma, starts, gain, start = 4, 0.7, 20000, -0.3, 0.5
    system = LinearSystem(torch.eye(1), torch.eye(1))
    like = build_task("integrator")
    task = replace(like, system=system, objective=Quadratic((1.0,), 0.0), horizon=horizon, noise=noise)
    policy = Linear((1,), (1,), members=starts, **tensor_options())  # each start a member, to tell them apart
    policy.theta.data.copy_(torch.tensor([[gain, 0.0]]).expand(starts, -1))
    found = Copies(task, policy, kind(sigma, copies), 1)
    if noise is not None:
        found.rollout.seed_noise(list(range(starts)), 0, each=found.rows)
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randn(starts, copies // 2, horizon, 1, generator=draw, dtype=torch.float64)
    rows = found.gradients(torch.full((starts, 1), start, dtype=torch.float64), drawn)[:, 0]
    loud = 0.0 if noise is None else LOUD**2
    theta = torch.tensor(gain, dtype=torch.float64, requires_grad=True)
    square, calm, beside = torch.tensor(start**2), start**2, 0.0
    loss, physics = torch.tensor(0.0, dtype=torch.float64), 0.0
    for _ in range(horizon):
        square = (1.0 + theta) ** 2 * square + sigma**2 + loud
        calm, beside = (1.0 + gain) ** 2 * calm + loud, (1.0 + gain) * (beside + calm)
        loss, physics = loss + 0.5 * square, physics + beside
    expected = float(torch.autograd.grad(loss, theta)[0]) if kind is Score else physics
    error = float(rows.std()) / math.sqrt(starts)
    assert abs(float(rows.mean()) - expected) < 4 * error < 0.3 * abs(expected)


@pytest.mark.parametrize("kind", LIMITS)
def test_a_member_whose_losses_overflow_has_no_gradient_and_the_others_have_theirs(kind):
    policy, initial, noise = policy_of(LINEAR, 3), uniform(1, 6, 2), uniform(2, 6, 2, 5, 1)
    task = task_of(LINEAR, 5)
    expected = Copies(task, policy, kind(0.3, 4), 2).gradients(initial, noise)
    policy.theta.data[1] *= 1e160  # the first states and controls are finite, squares are not
    found = Copies(task, policy, kind(0.3, 4), 2).gradients(initial, noise)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_a_training_shows_copies_the_noise_that_sweeps_see():
    task = replace(small_task(), horizon=5, noise=Noise(state=0.3))
    estimators = [gradient_named(name).estimator for name in ("R", "score(0.0001, 400)")]
    trainer = Trainer(task, [Member(one, 3) for one in estimators], SETTINGS)
    states = task.initial_states(trainer.settings.batch_size, 0, "train", torch.float64)
    _, (expected, found) = trainer.gradient(states.repeat(2, 1))
    assert relative_error(found, expected) < 0.3


def members(*texts):
    return [Member(gradient_named(text).estimator, seed) for seed, text in enumerate(texts)]


SETTINGS = TrainingSettings(train_samples=16, test_samples=8)


def small_task():
    return build_task("cart-pole", poles=1, horizon=20)


@pytest.mark.parametrize("index", range(4))
def test_members_with_scores_train_as_if_alone(index):
    together = members("R", "score(0.1, 4)", "mix(R, score(0.1, 4))", "score-physics(0.1, 6)")
    trainers = [Trainer(small_task(), chosen, SETTINGS) for chosen in (together, [together[index]])]
    records = [list(trainer.fit(2)) for trainer in trainers]
    for whole, alone in zip(*records, strict=True):
        assert whole.test_loss[index] == pytest.approx(alone.test_loss[0], rel=1e-9)


@pytest.mark.parametrize("index", range(4))
def test_scores_that_other_members_want_in_between_change_no_noise(index):
    together = members("score(0.1, 4)", "bisect(score(0.2, 4), score(0.3, 2))", "score(0.1, 4)", "score(0.2, 4)")
    trainers = [Trainer(small_task(), chosen, SETTINGS) for chosen in (together, [together[index]])]
    for trainer in trainers:
        list(trainer.fit(2))
    assert relative_error(trainers[0].policy.theta[index], trainers[1].policy.theta[0]) < 1e-9
    named = [name for name in trainers[0].state() if name.startswith("noise")]
    assert named == ["noise.0", "noise.1", "noise.1.1", "noise.2", "noise.3"]


def test_members_of_one_seed_draw_alike():
    trainer = Trainer(small_task(), [Member(Score(0.1, 4), 3), Member(gradient_named("R").estimator, 3),
                                     Member(Score(0.1, 4), 3), Member(Score(0.1, 4), 4)], SETTINGS)  # fmt: skip
    _, gradient = trainer.gradient(*next(trainer.batches()))
    assert torch.equal(gradient[0], gradient[2])
    assert not torch.equal(gradient[0], gradient[3])
    _, again = trainer.gradient(*next(trainer.batches()))
    assert not torch.equal(gradient[0], again[0])


def test_a_training_with_scores_goes_on_from_its_state():
    chosen = members("score(0.1, 4)", "mix(R, score-physics(0.1, 4))")
    whole, first, second = (Trainer(small_task(), chosen, SETTINGS) for _ in range(3))
    expected = list(whole.fit(3))[2]
    list(first.fit(2))
    second.load(2, {name: value.clone() for name, value in first.state().items()}, {})
    assert list(second.fit(3)) == [expected]


def test_a_checkpoint_with_one_generator_for_all_scores_of_a_member_still_opens(tmp_path, monkeypatch):
    made = Experiment("cart-pole", {"horizon": 5}, gradients=("R", "bisect(score(0.1, 4), score(0.2, 4))"), seeds=(0,))
    trainer = made.trainer()
    state = trainer.state()
    shared = {name: value for name, value in state.items() if not re.fullmatch(r"noise\.\d\.1", name)}
    assert len(shared) == len(state) - 1
    monkeypatch.setattr(trainer, "state", lambda: shared)
    config = made.to_config()
    write_checkpoint(tmp_path / "one.safetensors", trainer, config)
    assert continue_from(tmp_path / "one.safetensors", made.trainer(), config) == 0


def test_a_budget_that_the_copies_alone_exceed_is_refused():
    for text in ("R", "score(0.1, 4)"):
        Trainer(small_task(), members(text), replace(SETTINGS, memory="1GiB"))
    Trainer(small_task(), members("R"), replace(SETTINGS, memory="2MiB"))
    with pytest.raises(SettingError, match=r"^Expected a memory budget of more than the .*iB of the scores' copies"):
        Trainer(small_task(), members("score(0.1, 64)"), replace(SETTINGS, memory="2MiB"))


def test_a_mixture_weighs_by_the_inverse_of_the_variances():
    mix = Mix(FULL, Score(0.1, 4))
    sweeps, scores = 0.3 * uniform(0, 2, 5, 7) + 1.0, 2.0 * uniform(1, 2, 5, 7)
    found = mix.combine(dict(zip(mix.rules, (sweeps, scores), strict=True)))
    for member in range(2):
        one, other = (rows[member].var(0, correction=0).sum() for rows in (sweeps, scores))
        alpha = other / (one + other)
        expected = alpha * sweeps[member].mean(0) + (1 - alpha) * scores[member].mean(0)
        torch.testing.assert_close(found[member], expected)
        assert alpha > 0.9
    sweeps[0, 2, 3] = math.inf
    exploded = mix.combine(dict(zip(mix.rules, (sweeps, scores), strict=True)))
    huge = torch.full_like(sweeps, 0.9 * torch.finfo(sweeps.dtype).max)
    overflowing = mix.combine(dict(zip(mix.rules, (huge, scores), strict=True)))
    assert torch.equal(overflowing, scores.mean(1))
    torch.testing.assert_close(exploded[0], scores[0].mean(0))
    assert torch.equal(exploded[1], found[1])


def test_scores_have_names_and_refuse_nonsense():
    assert gradient_named("score").estimator == Score(0.1, 16)
    assert text_of(Mix(PHYSICS_ONLY, PhysicsScore(0.2, 8))) == "mix(M, score-physics(0.2, 8))"
    for text, message in {
        "score(0, 4)": "sigma above 0",
        "score(0.1, 5)": "in pairs",
        "score(0.1, 0)": "at least 2 copies",
        "mix(R, M)": "a score estimator to mix with",
        "mix(C, score)": "a rule as of",
        "clip-norm(score, 1)": "which combines whole sweeps",
    }.items():
        with pytest.raises(SettingError, match=message):
            gradient_named(text)
    assert gradient_named("unit(score(0.1, 4))").estimator.rules == (Score(0.1, 4),)


def test_mixtures_take_every_seed_that_there_is():
    noisy = replace(build_task("cart-pole", horizon=3), noise=Noise(control=0.1))
    settings = TrainingSettings(batch_size=2, train_samples=2, test_samples=1)
    trainer = Trainer(noisy, [Member(gradient_named("mix(R, score(0.1, 4))").estimator, MOST_SEEDS - 1)], settings)
    assert math.isfinite(trainer.run_epoch().train_loss[0])


@pytest.mark.parametrize("kind", LIMITS)
def test_copies_that_end_at_times_of_their_own_count_until_then(kind):
    """x' = x + u until x > 1.1, by hand: also of copies that outlive the start without noise, or end before it."""
    sigma, copies, horizon, starts = 0.15, 8, 4, 5
    task = replace(
        build_task("integrator"),
        system=LinearSystem(((1.0,),), ((1.0,),)),
        objective=Judged(running, lambda state: 3.0 * state.square().sum(1)),
        horizon=horizon,
        end=lambda states: states[:, 0] > 1.1,
    )
    policy = Linear((1,), (1,), **tensor_options())
    policy.theta.data.copy_(torch.tensor([[0.05, 0.1]]))
    noise = uniform(3, starts, copies // 2, horizon, 1, low=-2.0, high=2.0)
    found = Copies(task, policy, kind(sigma, copies), starts)
    found = found.gradients(torch.full((starts, 1), 0.9, **tensor_options()), noise)[0]
    weight, bias = policy.theta.detach()[0].tolist()
    expected, lengths = torch.zeros(2, **tensor_options()), set()
    for pairs in noise[..., 0].tolist():
        rows = [[0.0] * horizon, *pairs, *([-w for w in row] for row in pairs)]
        shown, losses, alive = [], [], []
        for row in rows:
            x, loss, over, states, lived = 0.9, 0.0, False, [], []
            for t in range(horizon):
                states.append(x)
                lived.append(not over)
                if not over:
                    seen = x if kind.closed else (shown[0][t] if shown else x)
                    u = weight * seen + bias + sigma * row[t]
                    loss += (0.5 + 0.01 * t) * x**2 + 0.2 * u**2
                    x += u
                over = x > 1.1
            shown.append(states)
            losses.append(loss + 3.0 * x**2)
            alive.append(lived)
            lengths.add(sum(lived))
        above = [loss - losses[0] for loss in losses[1:]]
        for i, gain in enumerate(above):
            other = (i + copies // 2) % copies
            scale = (gain - (sum(above) - gain - above[other]) / (copies - 1)) / sigma / copies / starts
            for t in range(horizon):
                if alive[i + 1][t]:
                    seen = shown[i + 1 if kind.closed else 0][t]
                    expected += scale * rows[i + 1][t] * torch.tensor([seen, 1.0], **tensor_options())
    assert len(lengths) > 1
    assert relative_error(found, expected) < 1e-12

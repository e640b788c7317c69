"""Gradients from single samples and from what came before: votes, adaptive clipping, and what they are made of."""

import math

import pytest
import reference
import torch
from conftest import StepCost, relative_error, swing_up_states, tensor_options, uniform
from test_parts import CASES, swept
from test_parts import build as build_parts

from engine import FULL, PHYSICS_ONLY, BudgetError, CartPole, PerSample, Rollout, SettingError, pull_back
from engine.controller import PullsBackSamples
from engine.memory import format_bytes
from policies import MLP, ModulePolicy
from training import Backpropagation, Member, Trainer, TrainingSettings, build_task
from training.combinations import Unit
from training.gradients import gradient_named, text_of
from training.samples import AdaptiveClip, AndMask, ClipSamples

pytestmark = pytest.mark.float64

SYSTEM, HORIZON, EACH = CartPole(1), 10, 3
COST = StepCost(
    lambda state, control, t: 0.1 * state.square().sum(1) + control.square().sum(1), reference.swing_up_cost
)


def mlp(members):
    policy = MLP((4,), (1,), hidden=(5,), members=members, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape, low=-2.0, high=2.0))
    return policy


def module(members):
    layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    policy = ModulePolicy(torch.nn.Sequential(*layers).to(**tensor_options()), (4,), (1,), members=members)
    policy.theta.data.copy_(uniform(0, *policy.theta.shape, low=-2.0, high=2.0))
    return policy


@pytest.mark.parametrize("segment", [None, 4])
@pytest.mark.parametrize("build", [mlp, module])
def test_gradients_of_samples_are_those_of_rollouts_of_one(build, segment):
    initial, rules = swing_up_states(1, 2 * EACH, 1), [PerSample(FULL), PerSample(PHYSICS_ONLY), FULL]
    together, alone = build(2), build(1)
    rollout = Rollout(SYSTEM, together, HORIZON, 2 * EACH, segment=segment)
    rollout.forward(initial, COST)
    found = rollout.backward(rules, COST, {rules[1]: slice(EACH, 2 * EACH)})
    single = Rollout(SYSTEM, alone, HORIZON, 1)
    for row, state in enumerate(initial):
        alone.theta.data.copy_(together.theta.data[row // EACH])
        single.forward(state[None], COST)
        expected = single.backward([FULL, PHYSICS_ONLY], COST).parameters
        place = row // EACH, row % EACH
        assert relative_error(found.parameters[rules[0]][place], expected[FULL][0]) < 1e-10
        if row < EACH:
            assert not found.parameters[rules[1]][place].any()
        else:
            assert relative_error(found.parameters[rules[1]][place], expected[PHYSICS_ONLY][0]) < 1e-10
    assert relative_error(found.parameters[rules[0]].mean(1), found.parameters[FULL]) < 1e-12
    assert torch.equal(found.initial[rules[0]], found.initial[FULL])


@pytest.mark.parametrize("segment", [None, 5])
def test_samples_are_pulled_back_at_once_as_one_after_another(segment, monkeypatch):
    rule = PerSample(FULL)
    _, rollout = build_parts(**CASES["observation"], segment=segment)
    assert isinstance(rollout.trace, PullsBackSamples)
    found = swept(rollout, [rule])
    _, other = build_parts(**CASES["observation"], segment=segment)
    monkeypatch.setattr(pull_back, "PullsBackSamples", type(None))
    expected = swept(other, [rule])
    assert relative_error(found.parameters[rule], expected.parameters[rule]) < 1e-12


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.75, 1.0])
def test_votes_of_samples_equal_their_formula(threshold):
    rows = uniform(2, 3, 8, 200) + 0.3
    rows[0, :, :40] = 0.0
    found = AndMask(FULL, threshold).combine({PerSample(FULL): rows})
    for member in range(3):
        votes = [sum(math.copysign(1, v) if v else 0 for v in column) / 8 for column in rows[member].T.tolist()]
        kept = [abs(vote) >= threshold for vote in votes]
        density = sum(kept) / 200
        assert 0 < density <= 1
        means = rows[member].mean(0).tolist()
        expected = [mean / density if keep else 0.0 for mean, keep in zip(means, kept, strict=True)]
        torch.testing.assert_close(found[member], torch.tensor(expected, dtype=torch.float64))


def test_where_no_parameter_is_agreed_on_nothing_moves():
    rows = torch.tensor([[[1.0, -2.0], [-3.0, 4.0]]], dtype=torch.float64)
    assert AndMask(FULL, 1.0).combine({PerSample(FULL): rows}).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("text", ["and-mask(R)", "clip-samples(R)", "each-sample(C)"])
def test_a_budget_counts_the_gradients_of_samples(text):
    def trainer(text, memory):
        settings = TrainingSettings(batch_size=256, train_samples=256, test_samples=2, memory=memory)
        return Trainer(build_task("cart-pole", horizon=200), [Member(gradient_named(text).estimator)], settings)

    whole = trainer("R", None)
    samples = 256 * whole.policy.parameter_count * 8
    least = 3 if text != "each-sample(C)" else 4
    assert trainer(text, None).planned_bytes == whole.planned_bytes + least * samples
    budget = 3 * whole.planned_bytes // 4 + least * samples
    cut = trainer(text, budget)
    assert whole.planned_bytes < cut.planned_bytes <= budget
    assert len(cut.rollout.plan.segments) > 1
    with pytest.raises(BudgetError, match=rf"^Expected a memory budget of at least .* got {format_bytes(samples)};"):
        trainer(text, samples)


def clipped_norms(norms):
    """What norms become, in Python numbers; means and deviations of the first 25 by their definition."""
    found, mean, variance = [], 0.0, 0.0
    for update, size in enumerate(norms):
        z = (size - mean) / math.sqrt(variance) if update >= 25 else 0.0
        kept = mean + 2.5**2 * math.sqrt(variance) / z if z > 2.5 else size
        found.append(kept)
        if update < 25:
            mean = sum(found) / len(found)
            variance = sum((value - mean) ** 2 for value in found) / len(found)
        else:
            mean = 0.97 * mean + 0.03 * kept
            variance = 0.97 * variance + 0.03 * (kept - mean) ** 2
    return found


def test_adaptive_clipping_equals_its_formula_and_keeps_directions():
    estimator, updates = AdaptiveClip(Backpropagation(FULL)), 80
    sizes = uniform(3, updates, 3, low=0.5, high=1.5) * torch.tensor([1.0, 1e-40, 1e40], dtype=torch.float64)
    sizes[5] *= 30.0  # in the warm-up
    sizes[40] *= 100.0
    sizes[41:43] *= 7.0
    directions = torch.nn.functional.normalize(uniform(4, updates, 3, 6), dim=2)
    memory = estimator.memory(3, sizes)
    found = torch.stack([estimator.remember(d * s[:, None], memory) for d, s in zip(directions, sizes, strict=True)])
    for member in range(3):
        expected = torch.tensor(clipped_norms(sizes[:, member].tolist()), dtype=torch.float64)
        assert (expected < sizes[:, member]).sum() >= 1
        assert torch.equal(expected[:25], sizes[:25, member])
        torch.testing.assert_close(
            found[:, member], directions[:, member] * expected[:, None], rtol=1e-9, atol=1e-14 * float(expected.max())
        )


def test_a_gradient_that_is_not_finite_stays_so_and_other_members_remember_as_before():
    estimator = AdaptiveClip(Backpropagation(FULL))
    memories = [estimator.memory(2, torch.zeros(1)) for _ in range(2)]
    for update in range(30):
        gradient = uniform(update, 2, 4)
        broken = gradient.clone()
        broken[0, 1] = math.inf if update == 28 else gradient[0, 1]
        found, expected = estimator.remember(broken, memories[0]), estimator.remember(gradient, memories[1])
        assert torch.equal(found[1], expected[1])
        assert bool(torch.isfinite(found[0]).all()) == (update != 28)
    for name, value in memories[0].items():
        assert torch.equal(value[1], memories[1][name][1])


CHOSEN = (
    "R", "and-mask(R, 0.75)", "each-sample(bisect(M, R))", "clip-samples(R, 0.5)", "adaptive-clip(R)",
    "random-cut(R, 0.1)", "balance(0.5)", "clip-value(M, 0.01)",
)  # fmt: skip
SETTINGS = TrainingSettings(train_samples=64, test_samples=8)


def trainer_of(*texts):
    seeds = [Member(gradient_named(text).estimator, CHOSEN.index(text)) for text in texts]
    return Trainer(build_task("cart-pole", poles=1, horizon=20), seeds, SETTINGS)


@pytest.fixture(scope="module")
def together():
    return list(trainer_of(*CHOSEN).fit(5))


@pytest.mark.parametrize("text", CHOSEN)
def test_members_train_as_if_alone(text, together):
    for record, alone in zip(together, trainer_of(text).fit(5), strict=True):
        assert record.test_loss[CHOSEN.index(text)] == pytest.approx(alone.test_loss[0], rel=1e-9)


def test_an_ensemble_goes_on_from_its_state_in_the_midst_of_its_memories(together):
    first, second = trainer_of(*CHOSEN), trainer_of(*CHOSEN)
    list(first.fit(4))
    assert "memory.4.mean" in first.state()
    second.load(4, {name: value.clone() for name, value in first.state().items()}, {})
    assert list(second.fit(5)) == together[4:]


def test_what_is_made_of_each_sample_is_what_it_makes_of_batches_of_one():
    def gradient_of(text, count):
        trainer = Trainer(
            build_task("cart-pole", poles=1, horizon=20),
            [Member(gradient_named(text).estimator)],
            TrainingSettings(batch_size=count, train_samples=4, test_samples=1),
        )
        trainer.policy.initialise(0, torch.Generator().manual_seed(0))
        trainer.policy.theta.data.add_(uniform(1, *trainer.policy.theta.shape, low=-0.1, high=0.1))
        return torch.stack([trainer.gradient(*batch)[1][0] for batch in trainer.batches()])

    for text in ("bisect(M, R)", "C", "unit(R)"):
        assert relative_error(gradient_of(f"each-sample({text})", 4)[0], gradient_of(text, 1).mean(0)) < 1e-12
    assert relative_error(gradient_of("each-sample(R)", 4), gradient_of("R", 4)) < 1e-12
    assert relative_error(gradient_of("clip-samples(R, 1000)", 4), gradient_of("R", 4)) < 1e-12


def test_no_sample_weighs_much_more_than_most():
    rows = uniform(3, 2, 5, 30)
    rows[0, 3] *= 1e6
    found = ClipSamples(FULL, 2.0).combine({PerSample(FULL): rows})
    sizes = rows[0].norm(dim=1)
    expected = rows[0].clone()
    expected[3] *= 2.0 * sizes.median() / sizes[3]
    torch.testing.assert_close(found[0], expected.mean(0))
    torch.testing.assert_close(found[1], rows[1].mean(0))
    for ratio in (0.0, -1.0, math.inf):
        with pytest.raises(SettingError, match="Expected ClipSamples with a ratio above 0, "):
            ClipSamples(FULL, ratio)
    for text in ("each-sample(and-mask(R))", "each-sample(score(0.1, 8))", "each-sample(each-sample(R))"):
        with pytest.raises(SettingError, match=r"Expected a gradient of whole sweeps for each sample, got"):
            gradient_named(text)


def test_what_remembers_stands_outside():
    assert text_of(AndMask(PHYSICS_ONLY, 0.5)) == "and-mask(M, 0.5)"
    assert gradient_named("adaptive-clip(agree(M, R))").text == "adaptive-clip(C)"
    for build in (
        lambda: Unit(AdaptiveClip(Backpropagation(FULL))),
        lambda: gradient_named("agree(adaptive-clip(R), M)"),
        lambda: gradient_named("cautious(adaptive-clip(R))"),
    ):
        with pytest.raises(SettingError, match=r"got an? AdaptiveClip, which remembers earlier updates; put"):
            build()
    with pytest.raises(SettingError, match=r"Expected AndMask with a threshold in \[0, 1\], got 1\.5\."):
        AndMask(FULL, 1.5)


def test_a_memory_is_made_like_the_parameters_of_its_members(monkeypatch):
    shown, made = [], AdaptiveClip.memory
    monkeypatch.setattr(AdaptiveClip, "memory", lambda self, *given: shown.append(given) or made(self, *given))
    plain, clipped = Backpropagation(FULL), AdaptiveClip(Backpropagation(FULL))
    task, settings = build_task("cart-pole", horizon=5), TrainingSettings(train_samples=8, test_samples=2)
    trainer = Trainer(task, [Member(plain, 1), Member(clipped, 2), Member(clipped, 3)], settings)
    ((members, like),) = shown
    assert members == 2
    assert torch.equal(like, trainer.policy.theta[1:])

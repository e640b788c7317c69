"""The ensemble trainer: members train as if alone, and one that diverges leaves the others untouched."""

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import taichi as ti
import torch
from conftest import tensor_options

import engine
from engine import FULL, AdjointError, CartPole, KernelSystem, SettingError
from policies import MLP
from training import Clipping, Member, Objective, Quadratic, Task, Trainer, TrainingSettings, build_task, gradient_named

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=32, test_samples=16)
ALL = [
    Member(gradient_named("R").estimator, 0),
    Member(gradient_named("R").estimator, 1, clipping=Clipping("norm", 0.5)),
    Member(gradient_named("C").estimator, 0, 3e-3),
    Member(gradient_named("M").estimator, 2, clipping=Clipping("value", 0.1)),
    Member(gradient_named("S").estimator, 1),
    Member(gradient_named("N").estimator, 3, 1e-2),
    Member(gradient_named("cautious(R)").estimator, 0),
    Member(gradient_named("keep-size").estimator, 1),
    Member(gradient_named("cautious(agree(R, step-agreement))").estimator, 2, clipping=Clipping("norm", 0.5)),
]


def small_task(**options):
    return build_task("cart-pole", **({"poles": 2, "horizon": 40} | options))


def history(trainer, epochs):
    return torch.tensor([[record.train_loss, record.test_loss] for record in trainer.fit(epochs)])


@pytest.mark.parametrize("index", range(len(ALL)))
def test_a_member_trains_as_if_alone(index, together):
    alone = history(Trainer(small_task(), [ALL[index]], SETTINGS), 4)
    torch.testing.assert_close(together[:, :, index], alone[:, :, 0], rtol=1e-9, atol=0.0)


@pytest.fixture(scope="module")
def together():
    return history(Trainer(small_task(), ALL, SETTINGS), 4)


@pytest.mark.cuda
def test_an_ensemble_goes_on_from_its_state():
    whole, first, second = (Trainer(small_task(), ALL, SETTINGS) for _ in range(3))
    expected = history(whole, 3)
    history(first, 2)
    second.load(2, {name: value.clone() for name, value in first.state().items()}, {})
    assert torch.equal(history(second, 3), expected[2:])


def test_members_of_one_seed_start_from_the_same_weights_and_states():
    trainer = Trainer(small_task(), ALL, SETTINGS)
    theta = trainer.policy.theta.detach()
    assert torch.equal(theta[0], theta[2])
    assert not torch.equal(theta[0], theta[1])
    batch = next(trainer.batches())[0].unflatten(0, (len(ALL), -1))
    assert torch.equal(batch[1], batch[4])
    assert not torch.equal(batch[1], batch[0])


def test_full_and_physics_gradients_are_equal_before_the_first_update():
    # The last layer starts at zero, so the control does not depend on the state yet.
    members = [Member(gradient_named(letter).estimator, 0) for letter in "RM"]
    trainer = Trainer(small_task(), members, SETTINGS)
    _, gradient = trainer.gradient(*next(trainer.batches()))
    assert gradient[0].any()
    torch.testing.assert_close(gradient[0], gradient[1], rtol=1e-12, atol=0.0)


@pytest.mark.cuda
@pytest.mark.float32
@pytest.mark.vulkan
def test_training_lowers_the_loss():
    losses = history(Trainer(small_task(poles=1, horizon=60), ALL[:3:2], SETTINGS), 12)
    assert (losses[-1, 1] < 0.95 * losses[0, 1]).all()


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_shows_every_training_state_once(shuffle):
    settings = TrainingSettings(train_samples=32, test_samples=8, shuffle=shuffle)
    trainer = Trainer(small_task(), ALL[:2], settings)
    shown = torch.stack([states for states, _ in trainer.batches()]).unflatten(1, (2, 8)).transpose(0, 1).flatten(1, 2)
    for member in range(2):
        order = shown[member, :, 0].argsort()
        expected = trainer._train[member][:, 0].argsort()
        assert torch.equal(shown[member][order], trainer._train[member][expected])
        assert torch.equal(shown[member], trainer._train[member]) is not shuffle


def test_seeds_differ_in_their_order_and_a_seed_repeats_it():
    settings = TrainingSettings(train_samples=32, test_samples=8, shuffle=True)
    first, second = (next(Trainer(small_task(), ALL[:2], settings).batches())[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[:8], first[8:])


def diverging(rate):
    members = [Member(gradient_named("R").estimator, seed, 1e-3) for seed in (0, 1)]
    members.insert(1, Member(gradient_named("C").estimator, 7, rate))
    return Trainer(small_task(), members, SETTINGS)


@pytest.mark.cuda
def test_a_member_that_diverges_is_frozen_and_named_and_the_others_go_on_unchanged():
    wild, tame = diverging(1e300), diverging(1e-3)
    found, expected = history(wild, 3), history(tame, 3)
    assert not tame.divergences
    assert list(wild.divergences) == [1]
    divergence = wild.divergences[1]
    assert (divergence.member, divergence.epoch, divergence.update) == (1, 1, 2)  # the first update has no control yet
    assert divergence.cause.startswith("the state is not finite at step ")
    assert torch.equal(found[:, :, [0, 2]], expected[:, :, [0, 2]])
    assert found[:, :, 1].isnan().all()
    assert torch.isfinite(wild.policy.theta).all()


def test_a_frozen_member_keeps_its_last_finite_parameters():
    trainer = diverging(1e300)
    batches = list(trainer.batches())
    trainer.update(*batches[0])
    before = trainer.policy.theta[1].clone()
    for batch in batches[1:]:
        trainer.update(*batch)
    assert 1 in trainer.divergences
    assert torch.equal(trainer.policy.theta[1], before)


@pytest.mark.cuda
def test_the_first_state_that_is_not_finite_is_named():
    trainer = Trainer(small_task(), ALL[:2], SETTINGS)
    initial = next(trainer.batches())[0].clone()
    initial[8 + 3, 0] = math.inf
    trainer.update(initial)
    assert trainer.divergences[1].cause == "the state is not finite at step 0, sample 3"
    assert 0 not in trainer.divergences


def test_a_divergence_is_named_by_the_epoch_and_update_in_which_it_shows():
    trainer = Trainer(small_task(), ALL[:2], SETTINGS)
    trainer.run_epoch()
    trainer._train[1, 17, 0] = math.nan  # update 3, sample 1
    trainer.run_epoch()
    found = trainer.divergences[1]
    assert (found.epoch, found.update, found.cause) == (2, 3, "the state is not finite at step 0, sample 1")
    assert list(trainer.divergences) == [1]


def test_parameters_that_are_not_finite_freeze_their_member_alone():
    trainer, sound = (Trainer(small_task(), ALL[:3], SETTINGS) for _ in range(2))
    trainer.policy.theta.data[1] = math.inf
    found, expected = history(trainer, 2), history(sound, 2)
    divergence = trainer.divergences[1]
    assert (divergence.epoch, divergence.update) == (1, 1)
    assert divergence.cause == "the state is not finite at step 1, sample 0"
    assert list(trainer.divergences) == [1]
    assert torch.equal(found[:, :, [0, 2]], expected[:, :, [0, 2]])


@dataclass(frozen=True)
class Spoilt:
    """Full backpropagation with one component lost."""

    rules = (FULL,)

    def combine(self, gradients):
        return gradients[FULL].index_fill(1, torch.tensor([5]), math.nan)


def test_a_gradient_that_is_not_finite_freezes_its_member():
    trainer = Trainer(small_task(), [ALL[0], Member(Spoilt(), 1)], SETTINGS)
    trainer.run_epoch()
    assert {member: entry.cause for member, entry in trainer.divergences.items()} == {1: "the gradient is not finite"}


class RootOfPosition(Objective):
    """√x of the cart: not a number left of the origin."""

    def final(self, state):
        return state[:, 0].sqrt()


def test_a_loss_that_is_not_finite_freezes_its_member():
    trainer = Trainer(replace(small_task(), objective=RootOfPosition()), ALL[:2], SETTINGS)
    initial = next(trainer.batches())[0].abs()
    initial[8:, 0] = -1e3
    initial[:8, 0] = 1e3
    trainer.update(initial)
    assert {member: entry.cause for member, entry in trainer.divergences.items()} == {1: "the loss is not finite"}


def test_a_policy_built_for_other_controls_is_refused():
    def wide(members, dtype, device):
        return MLP((6,), (2,), members=members, dtype=dtype, device=device)

    with pytest.raises(ValueError, match=r"Expected policy output of shape \[1, 1, 1\] .*, got \[1, 1, 2\]\."):
        Trainer(small_task(), ALL[:1], SETTINGS, policy=wide)


def test_a_policy_with_another_number_of_members_is_refused():
    def one(members, dtype, device):
        return MLP((6,), (1,), **tensor_options())

    with pytest.raises(SettingError, match="Expected a policy with 2 members, got 1"):
        Trainer(small_task(), ALL[:2], SETTINGS, policy=one)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trainer(small_task(), [], SETTINGS), "at least one member"),
        (lambda: next(Trainer(small_task(), ALL[:1], SETTINGS).fit(0)), "at least 1 epoch"),
        (lambda: Member(learning_rate=0.0), "learning rate above 0"),
        (lambda: Member(learning_rate=math.nan), "learning rate above 0"),
        (lambda: Trainer(small_task(), [Member(learning_rate=math.inf)], SETTINGS), "learning rates that are finite"),
        (lambda: Member(seed=-1), "seed of at least 0"),
        (lambda: TrainingSettings(batch_size=33, train_samples=32), "no larger than the 32 training states, got 33"),
        (lambda: TrainingSettings(batch_size=0), "batch_size of at least 1"),
        (lambda: Trainer(small_task(), ALL[:1], TrainingSettings(optimiser="adamw")), "an optimiser among"),
        (lambda: Trainer(small_task(), ALL[:1], TrainingSettings(momentum=1.0, optimiser="momentum")), "momentum in"),
        (lambda: CartPole(dt=-0.1), "dt above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(SettingError, match=rf"^Expected .*{message}.*\.$"):
        make()


@pytest.mark.parametrize(("batch", "states", "less", "more"), [(8, 20, 16, 24), (3, 256, 255, 258), (5, 6, 5, 10)])
def test_training_states_that_batches_do_not_divide_are_refused(batch, states, less, more):
    with pytest.raises(SettingError) as refusal:
        TrainingSettings(batch_size=batch, train_samples=states)
    assert str(refusal.value) == (
        f"Expected training states in whole mini-batches of {batch}, got {states}; take {less} or {more} of them, or "
        "another batch size."
    )
    for good in (less, more):
        settings = TrainingSettings(batch_size=batch, train_samples=good, test_samples=2)
        trainer = Trainer(small_task(), ALL[:1], settings)
        assert torch.equal(torch.cat([states for states, _ in trainer.batches()]), trainer._train[0])
        assert trainer.updates_per_epoch * batch == good


@pytest.mark.parametrize(
    ("optimiser", "size", "cause"),
    [
        ("sgd", 1e300, None),
        ("adam", 1e150, None),
        ("adam", 1e300, "the gradient's square, which adam keeps, is beyond torch.float64"),
        ("rmsprop", 1e155, "the gradient's square, which rmsprop keeps, is beyond torch.float64"),
        ("sgd", math.inf, "the gradient is not finite"),
        ("adam", math.nan, "the gradient is not finite"),
    ],
)
def test_a_gradient_too_large_for_its_optimiser_is_told_and_any_other_is_used(optimiser, size, cause, monkeypatch):
    settings = TrainingSettings(train_samples=8, test_samples=2, optimiser=optimiser)
    trainer = Trainer(small_task(), ALL[:2], settings)
    _, gradient = trainer.gradient(*next(trainer.batches()))
    gradient[0], gradient[1], gradient[1, 3:] = 1.0, 1.0, size
    monkeypatch.setattr(trainer, "gradient", lambda *_: (torch.ones(2, dtype=torch.float64), gradient))
    before = trainer.policy.theta.detach().clone()
    trainer.update(*next(trainer.batches()))
    moved = (trainer.policy.theta.detach() != before).any(1).tolist()
    assert [entry.cause for entry in trainer.divergences.values()] == ([] if cause is None else [cause])
    assert moved == [True, cause is None]


def test_the_papers_defaults():
    settings = TrainingSettings()
    assert (settings.batch_size, settings.train_samples, settings.test_samples) == (8, 256, 256)
    assert (settings.optimiser, settings.shuffle, Member().learning_rate) == ("adam", False, 1e-3)
    trainer = Trainer(small_task(), ALL[:1])
    assert trainer.updates_per_epoch == 32
    assert trainer._optimiser.optimiser.defaults["eps"] == 1e-7
    assert engine.current().dtype == torch.float64


@ti.kernel
def far_root(x: ti.types.ndarray(ndim=2), u: ti.types.ndarray(ndim=2), y: ti.types.ndarray(ndim=2)):
    for b in range(x.shape[0]):
        away = ti.abs(x[b, 0] - 37.0)
        y[b, 0] = u[b, 0] + ti.max(ti.sqrt(away), 0.5)


def test_a_users_kernel_is_tried_where_its_task_starts():
    """Its adjoint is NaN at 37 alone, where every sample begins and no random state comes."""

    def trainer(start):
        system = KernelSystem(far_root, (1,), (1,))
        make = partial(MLP, (1,), (1,), (4,))
        sample = lambda count, draw: torch.full((count, 1), start, dtype=torch.float64)  # noqa: E731
        task = Task("far-root", system, Quadratic((1.0,), 0.1), sample, 3, make)  # pyright: ignore[reportArgumentType]
        trainer = Trainer(task, [Member()], TrainingSettings(batch_size=4, train_samples=4, test_samples=4))
        return trainer.update(*next(trainer.batches()))

    assert torch.isfinite(trainer(30.0)).all()
    with pytest.raises(AdjointError, match="got nan for state"):
        trainer(37.0)

"""What makes the host wait for a device, and that no update of a training does."""

import math
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from conftest import uniform
from torch.utils._python_dispatch import TorchDispatchMode

from engine import current, finiteness, norms
from engine.finiteness import Finiteness
from policies import ModulePolicy
from training import TASKS, Member, Trainer, TrainingSettings, build_task
from training.clipping import Clipping
from training.gradients import gradient_named

pytestmark = pytest.mark.float64

# Reads of a device by the host, whatever it does with them, and copies of what the host made.
WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "lift_fresh", "_to_copy")
SIZES = {"fluid": {"particles": 60, "jets": 2, "duration": 0.02}, "swarm": {"evaders": 30, "drivers": 2}}


class Operations(TorchDispatchMode):
    """How often torch runs each operation."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts[operation.name().partition("::")[2].partition(".")[0]] += 1
        return operation(*args, **(kwargs or {}))


def trainer_of(task, names=("R", "M", "C"), clipping="none", policy=None):
    members = [Member(gradient_named(name).estimator, clipping=Clipping(clipping)) for name in names]
    return Trainer(task, members, TrainingSettings(train_samples=6, batch_size=2, test_samples=2), policy)


@contextmanager
def waits_refused():
    """A block in which torch itself fails where it would wait for CUDA."""
    if current().backend != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waited_for(trainer, monkeypatch):
    """What the host waits for in the second update of an epoch."""
    seen, update = Operations(), trainer.update

    def watched(states, parameters, place):
        if place != 1:
            return update(states, parameters, place)
        with seen, waits_refused():
            return update(states, parameters, place)

    monkeypatch.setattr(trainer, "update", watched)
    trainer.run_epoch()
    assert sum(seen.counts.values()) > 100
    waits = WAITS if current().backend != "cuda" else ()  # there torch tells copies that wait from others
    return {kind: seen.counts[kind] for kind in waits if seen.counts[kind]}


@pytest.mark.cuda
@pytest.mark.parametrize("name", TASKS)
def test_no_update_after_the_first_waits_for_the_device(name, monkeypatch):
    task = build_task(name, **{"horizon": 4, **SIZES.get(name, {})})
    assert waited_for(trainer_of(task), monkeypatch) == {}


class Dense(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, state):
        return self.layer(state)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("name", "gradients", "clipping", "module"),
    [
        ("cart-pole", ("score(0.1, 4)", "score-physics(0.1, 4)", "mix(R, score(0.1, 4))"), "norm", None),
        # Of more numbers than a kernel takes: rules are called between the steps.
        ("swarm", ("clip-norm(R, 1e-3)", "clip-value(R, 1e-3)"), "value", None),
        ("cart-pole", ("R",), "none", Dense),
    ],
)
def test_neither_scores_nor_norms_nor_modules_wait_for_the_device(name, gradients, clipping, module, monkeypatch):
    task = build_task(name, **{"horizon": 4, **SIZES.get(name, {})})
    policy = None if module is None else lambda **given: ModulePolicy(module, (4,), (1,), **given)
    trainer = trainer_of(task, gradients, clipping, policy)
    # As of tensors on a device, at which nobody looks before they are asked for.
    monkeypatch.setattr(norms, "at_hand", lambda tensor: False)
    assert waited_for(trainer, monkeypatch) == {}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_questions_that_are_put_off_are_answered_at_the_end(number):
    finite, fine = Finiteness(), uniform(0, 3, 4)
    bad = fine.clone()
    bad[1, 2] = number
    assert finite(fine)
    assert not finite(fine, bad)
    for put, right in (
        (lambda: finite(fine, fine), True),
        (lambda: finite(fine, bad), False),
        (lambda: finite.equal(fine, fine.clone()), True),
        (lambda: finite.equal(fine, bad), False),
        (lambda: finite.holds(fine < 2), True),
        (lambda: finite.holds(fine < 0), False),
    ):
        with finite.put_off():
            assert put()
        assert finite.all_were() is right
        assert put() is right


def test_what_was_put_off_is_forgotten_by_the_next_block():
    finite = Finiteness()
    with finite.put_off():
        finite(torch.full((1,), math.nan))
    assert not finite.all_were()
    with finite.put_off():
        finite(torch.zeros(1))
    assert finite.all_were()


def test_an_epoch_in_which_something_is_not_finite_is_that_of_its_updates_one_by_one(monkeypatch):
    apart, together = (trainer_of(build_task("cart-pole", horizon=4), ("R", "C")) for _ in range(2))
    for trainer in (apart, together):
        states = trainer._train
        states[1, 2] = 1e300  # of one member, so that its costs overflow in the second update
    for place, (states, parameters) in enumerate(apart.batches()):
        apart.update(states, parameters, place)
        apart.updates = place + 1
    together.run_epoch()
    assert apart.divergences == together.divergences
    assert [(one.member, one.update) for one in together.divergences.values()] == [(1, 2)]
    for name, value in apart.state().items():
        assert torch.equal(value, together.state()[name]), name


def places_of_an_epoch(trainer, monkeypatch):
    """The places of all updates that an epoch makes, in their order."""
    update, places = trainer.update, []

    def counted(states, parameters, place):
        places.append(place)
        return update(states, parameters, place)

    monkeypatch.setattr(trainer, "update", counted)
    trainer.run_epoch()
    return places


@pytest.mark.parametrize(("long", "made"), [(0.0, 1), (1e9, 2)])
def test_an_epoch_of_long_updates_is_not_made_again(long, made, monkeypatch):
    monkeypatch.setattr(finiteness, "_LONG", long)
    trainer = trainer_of(build_task("cart-pole", horizon=4), ("R", "C"))
    trainer._train[1, 4] = 1e300  # in the third update
    assert places_of_an_epoch(trainer, monkeypatch) == [0, 1, 2] * made
    assert list(trainer.divergences) == [1]


def test_an_epoch_of_long_updates_ends_where_it_has_to_be_made_again(monkeypatch):
    monkeypatch.setattr(finiteness, "_LONG", 0.0)
    trainer = trainer_of(build_task("cart-pole", horizon=4), ("R", "C"))
    trainer._train[1, 0] = 1e300  # in the first update, before any is timed
    assert places_of_an_epoch(trainer, monkeypatch) == [0, 1, 0, 1, 2]
    assert [(one.member, one.update) for one in trainer.divergences.values()] == [(1, 1)]


def strict(trainer, monkeypatch):
    """The trainer with updates that fail at parameters that are not finite, as somebody's own code may."""
    update = trainer.update

    def checked(states, parameters, place):
        if not torch.isfinite(trainer.policy.theta).all():
            raise ValueError("not finite")
        return update(states, parameters, place)

    monkeypatch.setattr(trainer, "update", checked)
    return trainer


def test_what_fails_at_numbers_that_would_have_been_frozen_fails_nothing(monkeypatch):
    apart, together = (trainer_of(build_task("cart-pole", horizon=4), ("R", "C")) for _ in range(2))
    for trainer in (apart, together):
        trainer._train[1, 2] = 1e300
    apart.run_epoch()
    strict(together, monkeypatch).run_epoch()
    assert together.divergences == apart.divergences
    assert list(together.divergences) == [1]
    assert torch.equal(together.policy.theta, apart.policy.theta)


def test_what_fails_at_finite_numbers_is_told(monkeypatch):
    trainer = trainer_of(build_task("cart-pole", horizon=4), ("R", "C"))
    monkeypatch.setattr(trainer, "_step", lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run_epoch()

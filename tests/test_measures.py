"""What the updates of an epoch are measured by, against the same by hand, update by update."""

import math
from dataclasses import replace

import pytest
import torch

from engine import FULL, PHYSICS_ONLY, RolloutTape
from training import Clipping, Member, Trainer, TrainingSettings, build_task, gradient_named
from training.measures import _SIGNS_EVERY

pytestmark = pytest.mark.float64

MEMBERS = [
    Member(gradient_named("R").estimator, 0),
    Member(gradient_named("C").estimator, 1, clipping=Clipping("norm", 0.001)),
    Member(gradient_named("cautious(bisect(M, R))").estimator, 0),
    Member(gradient_named("C").estimator, 2),
    Member(gradient_named("score(0.1, 2)").estimator, 1),
]
UPDATES = _SIGNS_EVERY + 1


def trainer_of(members=MEMBERS):
    settings = TrainingSettings(train_samples=2 * UPDATES, batch_size=2, test_samples=2)
    return Trainer(build_task("guidance", horizon=20), members, settings)


def length(numbers):
    return math.sqrt(math.fsum(number**2 for number in numbers.flatten().tolist()))


def mean(numbers):
    return math.fsum(numbers) / len(numbers)


def test_an_epoch_says_what_its_updates_were_like():
    trainer = trainer_of()
    rollout, objective = trainer.rollout, trainer.task.objective
    gradients, adjoints, signs = ([[] for _ in MEMBERS] for _ in range(3))
    for place, (states, parameters) in enumerate(trainer.batches()):
        with RolloutTape(FULL, PHYSICS_ONLY) as tape:
            rollout(states, objective, parameters)
        found = tape.gradients(rollout)
        for member in range(len(MEMBERS)):
            full, physics = (found.parameters[rule][member] for rule in (FULL, PHYSICS_ONLY))
            agree = [a * b > 0 for a, b in zip(full.tolist(), physics.tolist(), strict=True) if a * b != 0]
            signs[member] += agree if place % _SIGNS_EVERY == 0 else []
            bisecting = physics + full * length(physics) / length(full)
            combined = torch.where(full * physics > 0, physics, 0.0)
            gradients[member].append(length([full, combined, bisecting, combined, full][member]))
            samples = range(2 * member, 2 * member + 2)
            rules = (FULL,) if member == 0 else (FULL, PHYSICS_ONLY)
            adjoints[member].append([mean([length(found.initial[rule][one]) for one in samples]) for rule in rules])
        trainer.update(states, parameters, place)
        trainer.updates = place + 1
    record = vars(trainer_of().run_epoch())
    assert record["gradient_norm"][:4] == pytest.approx([mean(norms) for norms in gradients[:4]], rel=1e-9)
    assert record["clipped_norm"][1] == pytest.approx(mean([min(norm, 0.001) for norm in gradients[1]]), rel=1e-9)
    assert record["clipped_norm"][1] < record["gradient_norm"][1]
    for member in (0, 2, 3, 4):
        assert record["clipped_norm"][member] == pytest.approx(record["gradient_norm"][member], rel=1e-12)
    largest = [max(mean(sizes) for sizes in zip(*found, strict=True)) for found in adjoints]
    assert record["adjoint_norm"][:4] == pytest.approx(largest[:4], rel=1e-9)
    assert record["sign_agreement"][1:4] == pytest.approx([mean(agree) for agree in signs[1:4]], abs=1e-12)
    assert 0 < record["sign_agreement"][3] < 1
    assert record["sign_agreement"][0] is record["sign_agreement"][4] is record["adjoint_norm"][4] is None
    assert record["gradient_norm"][4] > 0
    assert record["update_seconds"] > 0


def test_nothing_is_measured_outside_of_an_epoch_and_nothing_twice():
    plain, other = trainer_of(MEMBERS[:3]), trainer_of(MEMBERS[:3])
    other.gradient(*next(iter(other.batches())))
    other.try_epoch(iter([False, False, True]).__next__)  # stopped in its third update
    expected = plain.run_epoch()
    assert other.run_epoch() == expected
    spoilt = trainer_of(MEMBERS[:3])
    spoilt._train[1, 3] = 1e300  # so that the epoch is made again, and the second member frozen
    record = spoilt.run_epoch()
    assert list(spoilt.divergences) == [1]
    for name in ("gradient_norm", "clipped_norm", "adjoint_norm", "sign_agreement"):
        values = getattr(record, name)
        assert values[1] is None
        assert [values[0], values[2]] == [getattr(expected, name)[index] for index in (0, 2)]


def test_what_waits_to_be_measured_together_is_what_is_measured_at_once(monkeypatch):
    expected = trainer_of().run_epoch()
    for many in (0, 100, 10**9):
        monkeypatch.setattr("training.measures._MANY", many)
        found = trainer_of().run_epoch()
        assert found.test_loss == expected.test_loss
        for name in ("gradient_norm", "clipped_norm", "adjoint_norm", "sign_agreement"):
            one, other = ([-1.0 if value is None else value for value in getattr(of, name)] for of in (found, expected))
            assert one == pytest.approx(other, rel=1e-12), name
    assert replace(found, update_seconds=1.0) == found

"""A training that is asked to stop in the middle of an epoch ends at once, and goes on to the same numbers."""

import os
import signal

import pytest
import torch
from test_experiment import equal, outcome
from test_signals import EXPERIMENT, trained_whole

from training import RunDirectory, resume, train
from training.trainer import Trainer

pytestmark = pytest.mark.float64


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained_whole(tmp_path_factory)


@pytest.mark.parametrize("update", [1, 2, 5, 6])  # the first and the last of epoch 1, and those of epoch 3
def test_a_signal_within_an_epoch_ends_after_the_update_under_way(update, whole, tmp_path, monkeypatch):
    made, plain = [], Trainer.update

    def counted(trainer, *given):
        made.append(trainer.updates)
        if len(made) == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(trainer, *given)

    monkeypatch.setattr(Trainer, "update", counted)
    trainer = train(EXPERIMENT, tmp_path / "run")
    assert len(made) == update
    assert (trainer.epoch, trainer.updates) == (update // 2, 0)
    assert (
        RunDirectory.open(tmp_path / "run").epoch == len(RunDirectory.open(tmp_path / "run").metrics()) == update // 2
    )
    resume(tmp_path / "run")
    equal(outcome(tmp_path / "run"), whole)


def test_an_epoch_that_is_stopped_leaves_the_trainer_as_it_was():
    trainer, stopped = EXPERIMENT.trainer(), EXPERIMENT.trainer()
    for one in (trainer, stopped):
        one.run_epoch()
    answers = iter([False, True])
    stopped.update(next(stopped.batches())[0].fill_(float("nan")))  # a member that diverged in between stays so
    before = {name: value.clone() for name, value in stopped.state().items()}
    divergences = dict(stopped.divergences)
    assert stopped.try_epoch(lambda: next(answers)) is None
    assert stopped.divergences == divergences
    assert all(torch.equal(value, before[name]) for name, value in stopped.state().items())
    answers = iter([False, True])
    assert trainer.try_epoch(lambda: next(answers)) is None
    again = EXPERIMENT.trainer()
    assert [again.run_epoch() for _ in range(3)][1:] == [trainer.run_epoch() for _ in range(2)]

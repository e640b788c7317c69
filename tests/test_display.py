"""The log of a training: a line now and then, whatever an epoch takes, and no word once nobody reads."""

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from children import HANGS
from rich.console import Console

from training import display
from training.display import TrainingProgress
from training.trainer import EpochRecord
from training.variant import Label, Variant

pytestmark = pytest.mark.float64

LABELS = [Label(Variant(letter), 0) for letter in "RC"]


def trainer(epoch=0, updates=0) -> Any:
    task = SimpleNamespace(success=None)
    return SimpleNamespace(task=task, epoch=epoch, updates=updates, updates_per_epoch=32, divergences={})


def record(epoch):
    return EpochRecord(epoch, [1.0, 2.0], [1.0, 2.0])


def waited_for(check):
    deadline = time.monotonic() + HANGS
    while not check() and time.monotonic() < deadline:
        time.sleep(0.01)
    return check()


def test_ten_lines_where_epochs_are_short():
    out = io.StringIO()
    with TrainingProgress(LABELS, 100, Console(file=out, width=40)) as progress:
        for epoch in range(1, 101):
            progress(trainer(), record(epoch))
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{epoch}/100" for epoch in range(10, 101, 10)]
    assert lines[0] == "epoch 10/100  test loss  R 1  C 2"


def test_a_line_for_every_epoch_where_they_take_long(monkeypatch):
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    progress = TrainingProgress(LABELS, 1000, Console(file=out))  # not entered, so that nobody else speaks
    for epoch in range(1, 11):
        now[0] += 5.0
        progress(trainer(), record(epoch))
    assert len(out.getvalue().splitlines()) == 10


def test_a_silent_hour_within_an_epoch_is_filled(monkeypatch):
    assert display._SILENCE < 10
    monkeypatch.setattr(display, "_SILENCE", 0.05)
    out, at = io.StringIO(), trainer()
    with TrainingProgress(LABELS, 3, Console(file=out)) as progress:
        assert waited_for(lambda: "preparing" in out.getvalue())
        progress.follow(at)
        at.updates = 7
        assert waited_for(lambda: "epoch 1/3  update 7 of 32" in out.getvalue())
        at.epoch, at.updates = 1, 9
        assert waited_for(lambda: "epoch 2/3  update 9 of 32" in out.getvalue())
    said = out.getvalue()
    time.sleep(0.2)
    assert out.getvalue() == said


class Closed(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError


@pytest.fixture
def closed(monkeypatch):
    monkeypatch.setattr("os.dup2", lambda *_: None)  # what rich does to the real output
    return Console(file=Closed())


def test_a_closed_pipe_is_told_to_the_training_alone(closed):
    with TrainingProgress(LABELS, 1, closed) as progress, pytest.raises(BrokenPipeError):
        progress(trainer(), record(1))


def test_a_pipe_that_closes_in_a_silence_is_told_after_the_epoch(closed, monkeypatch):
    monkeypatch.setattr(display, "_SILENCE", 0.02)
    with TrainingProgress(LABELS, 1000, closed) as progress:
        assert waited_for(lambda: progress._unheard is not None)
        with pytest.raises(BrokenPipeError):
            progress(trainer(), record(1))

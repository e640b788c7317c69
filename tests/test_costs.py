"""What an update costs, as a study keeps it: a file that is damaged is told in one sentence."""

import pytest

from benchmarks.studies import costs
from benchmarks.studies.costs import load_costs, measure_costs
from benchmarks.studies.study import Study
from training import Trainer, TrainingSettings
from training.errors import RunError

pytestmark = pytest.mark.float64

DAMAGED = {
    "cut off": b'{"1": {"R": {"ms": 2.',
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "numbers": b'{"1": 2}',
    "a number for each gradient": b'{"1": {"R": 2.0}}',
    "no time": b'{"1": {"R": {"bytes": 1}}}',
    "time that is no number": b'{"1": {"R": {"ms": "2"}}}',
    "NaN": b'{"1": {"R": {"ms": NaN}}}',
    "beyond numbers": b'{"1": {"R": {"ms": 1e999}}}',
    "no time at all": b'{"1": {"R": {"ms": 0}}}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_costs_are_told_in_one_sentence(name, tmp_path):
    (tmp_path / "costs.json").write_bytes(DAMAGED[name])
    with pytest.raises(
        RunError, match=r"^Expected an update's cost for each gradient in .*, got something else; .*\.$"
    ):
        load_costs(tmp_path)
    assert (tmp_path / "costs.json").read_bytes() == DAMAGED[name]


def test_costs_that_cannot_be_read_are_told_and_none_are_none(tmp_path):
    assert load_costs(tmp_path) == {}
    (tmp_path / "costs.json").mkdir()
    with pytest.raises(RunError, match=r"^Expected costs that can be read, got .*costs\.json: Is a directory\.$"):
        load_costs(tmp_path)


def test_whole_costs_are_read_as_they_are(tmp_path):
    (tmp_path / "costs.json").write_text('{"1": {"R": {"ms": 2.5, "phases": {}, "bytes": 7}}}')
    assert load_costs(tmp_path) == {"1": {"R": {"ms": 2.5, "phases": {}, "bytes": 7}}}


def updates_counted(monkeypatch, study):
    made, update = [], Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda self, *args: made.append(self) or update(self, *args))
    found = measure_costs(study)["1"]
    assert min(entry["ms"] for entry in found.values()) > 0
    return len(made)


def test_of_slow_updates_few_are_timed(monkeypatch):
    """Each of a fluid's takes seconds, and thirty of seven gradients took longer than a training."""
    settings = TrainingSettings(batch_size=1, train_samples=1, test_samples=1)
    study = Study("cart-pole", {"horizon": 3}, (1,), gradients=("R", "C"), seed_count=1, epochs=1, settings=settings)
    monkeypatch.setattr(costs, "_SLOW", float("inf"))
    assert updates_counted(monkeypatch, study) >= 2 * 8 * 4
    monkeypatch.setattr(costs, "_SLOW", 0.0)
    monkeypatch.setattr(costs, "_SECONDS", 0.0)
    assert updates_counted(monkeypatch, study) == 2 * (2 + 4 + 3)

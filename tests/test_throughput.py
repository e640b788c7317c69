"""Studies an hour against workers: the laying out of packs, and that what is measured is written."""

import json
import os

import pytest
from rich.console import Console

from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.study import Study
from benchmarks.studies.throughput import finish, throughput
from engine import SettingError
from training import TrainingSettings
from training.errors import RunError

pytestmark = pytest.mark.float64


@pytest.mark.parametrize(
    ("packs", "workers", "seconds"),
    [
        ([3.0, 1.0, 1.0, 1.0], 1, 6.0),
        ([3.0, 1.0, 1.0, 1.0], 2, 3.0),
        ([1.0, 1.0, 1.0, 3.0], 2, 4.0),  # in turn: the longest comes last
        ([1.0, 2.0, 3.0], 5, 3.0),
    ],
)
def test_packs_go_to_whoever_is_free_first(packs, workers, seconds):
    assert finish(packs, workers) == seconds


def test_a_study_is_timed_with_every_number_of_workers(forked_modules, tmp_path):
    settings = TrainingSettings(train_samples=8, test_samples=4)
    study = Study("lqr", settings=settings, difficulties=(4, 5), gradients=("R",), seed_count=2, epochs=1)
    out = tmp_path / "workers"
    with open(os.devnull, "w") as nowhere:
        written = throughput((2,), out, Console(file=nowhere), study)
    assert [path.name for path in written] == ["workers.md", "workers.json", "workers.png"]
    assert all(path.stat().st_size > 200 for path in written)
    found = json.loads((out / "workers.json").read_text())
    assert list(found["measured"]) == ["1", "2"]
    assert len(found["packs"]) == 2
    assert found["simulated"]["1"] == pytest.approx(sum(found["packs"]))
    assert found["simulated"]["1"] <= found["measured"]["1"]
    assert found["simulated"]["16"] == max(found["packs"])
    losses = [[line["test_loss"] for line in StudyDirectory(out / f"jobs-{count}").lines] for count in (1, 2)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"^Expected a new directory, got "):
        throughput((1,), tmp_path, Console())
    with pytest.raises(SettingError, match="at least 1 job, got 0"):
        throughput((0,), tmp_path / "new", Console())
    assert not (tmp_path / "new").exists()

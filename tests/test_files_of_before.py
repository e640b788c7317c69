"""Runs and studies whose files were written before their settings had one declaration: they open, and files stay so."""

import pytest
import yaml

from benchmarks.studies.directory import StudyDirectory, check_same
from benchmarks.studies.study import Study
from training import Experiment, RunDirectory
from training.optimisers import settings_to_file

pytestmark = pytest.mark.float64

SETTINGS = """settings:
  batch_size: 8
  train_samples: 256
  test_samples: 256
  optimiser: adam-keras
  momentum: 0.9
  shuffle: false
  memory: null
"""
RUN = (
    """kind: evenflow run
format: 1
runtime:
  backend: cpu
  precision: float64
task: cart-pole
options:
  poles: 1
  horizon: 5
  dt: 0.01
gradients:
- R
- C
seeds:
- 0
- 3
learning_rates:
- 0.001
clippings:
- none
- norm(0.5)
epochs: 6
checkpoint_every: 4
variants: []
milestones: null
order:
- R
- C
"""
    + SETTINGS
)
STUDY = (
    """kind: evenflow study
format: 1
runtime:
  backend: cpu
  precision: float64
task: cart-pole
options:
  horizon: 5
difficulties:
- 1
- 2
gradients:
- R
- M
clippings:
- none
learning_rates:
- 0.001
seeds: 2
tuning_seeds: 1
epochs: 3
"""
    + SETTINGS
)
EXPERIMENT = Experiment(
    "cart-pole", {"poles": 1, "horizon": 5, "dt": 0.01}, seeds=(0, 3), clippings=("none", "norm(0.5)"), epochs=6,
    checkpoint_every=4, order=("R", "C"),
)  # fmt: skip
COMPARED = Study(
    "cart-pole", {"horizon": 5}, (1, 2), gradients=("R", "M"), seed_count=2, tuning_seed_count=1, epochs=3
)  # fmt: skip


def test_a_runs_file_of_before_is_read_and_written_as_it_was(tmp_path):
    (tmp_path / "config.yaml").write_text(RUN)
    run = RunDirectory.open(tmp_path)
    assert Experiment.from_config(run.config) == EXPERIMENT
    written = RunDirectory.create(tmp_path / "new", EXPERIMENT.to_config())
    assert yaml.safe_load((written.path / "config.yaml").read_text()) == yaml.safe_load(RUN)


def test_a_studys_file_of_before_is_read_and_written_as_it_was(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    study, config = StudyDirectory(tmp_path), COMPARED.to_config()
    assert (study.runtime.precision, study.config["seeds"], study.lines) == ("float64", 2, [])
    check_same(config, study.config, tmp_path)
    assert {**config, "settings": settings_to_file(config["settings"])} == yaml.safe_load(STUDY)


def test_seeds_are_seeds_and_counts_are_counts():
    assert (EXPERIMENT.seeds, COMPARED.seeds, COMPARED.tuning_seeds) == ((0, 3), (0, 1), (1000,))
    assert COMPARED.experiment(2, COMPARED.seeds).seeds == (0, 1)
    assert COMPARED.experiment(2, (5,)).shared() == COMPARED.shared()

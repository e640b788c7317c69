"""A checkpoint that was written on the CPU is continued on whatever backend runs."""

import json

import pytest
import torch
from children import ROOT, run_python
from test_run import EXPERIMENT

from engine import current
from training import RunDirectory

pytestmark = pytest.mark.float64

ON_THE_CPU = """
import sys; sys.path.insert(0, TESTS)
import engine
engine.init("cpu", "float64", threads=1)
from pathlib import Path
import test_run
run = test_run.RunDirectory.create(Path(WHERE), test_run.EXPERIMENT.to_config())
trainer = test_run.EXPERIMENT.trainer()
for _ in range(2):
    run.append(trainer.run_epoch(), 0.5, trainer.divergences)
run.save(trainer)
record = trainer.run_epoch()
print(record.train_loss + record.test_loss)
"""


@pytest.mark.cuda
def test_a_checkpoint_of_the_cpu_continues_on_every_backend(tmp_path):
    source = ON_THE_CPU.replace("TESTS", repr(str(ROOT / "tests"))).replace("WHERE", repr(str(tmp_path / "run")))
    expected = json.loads(run_python(source).stdout.splitlines()[-1])
    other = EXPERIMENT.trainer()
    assert RunDirectory.open(tmp_path / "run").restore(other) == 2
    assert other.policy.theta.device == current().device
    record = other.run_epoch()
    torch.testing.assert_close(
        torch.tensor(record.train_loss + record.test_loss), torch.tensor(expected), rtol=1e-8, atol=0
    )

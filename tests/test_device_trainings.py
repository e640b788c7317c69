"""Trainings of every task on a card find what they find on the CPU: ensembles, scores and clipping included."""

import json

import pytest
import torch
from children import ROOT, run_python

from training import TASKS, Member, Trainer, TrainingSettings, build_task
from training.clipping import Clipping
from training.gradients import gradient_named

pytestmark = [pytest.mark.card, pytest.mark.float64]

SIZES = {"fluid": {"particles": 60, "jets": 2, "duration": 0.02}, "swarm": {"evaders": 100, "drivers": 2}}
GRADIENTS = ("R", "C", "clip-norm(R, 1e-3)", "score(0.1, 4)")
ON_THE_CPU = """
import sys; sys.path.insert(0, TESTS)
import engine, json, test_device_trainings
engine.init("cpu", "float64", threads=1)
print(json.dumps({name: test_device_trainings.losses(name) for name in test_device_trainings.TASKS}))
"""


def losses(name):
    """Of two epochs of four members, every number in a row."""
    task = build_task(name, **{"horizon": 4, **SIZES.get(name, {})})
    members = [Member(gradient_named(text).estimator, 1, clipping=Clipping("norm", 0.1)) for text in GRADIENTS]
    trainer = Trainer(task, members, TrainingSettings(train_samples=6, batch_size=3, test_samples=3))
    return [loss for record in trainer.fit(2) for loss in (*record.train_loss, *record.test_loss)]


@pytest.fixture(scope="module")
def expected():
    return json.loads(run_python(ON_THE_CPU.replace("TESTS", repr(str(ROOT / "tests")))).stdout.splitlines()[-1])


@pytest.mark.parametrize("name", TASKS)
def test_a_training_on_a_card_finds_what_it_finds_on_the_cpu(name, expected):
    found, wanted = (torch.tensor(values, dtype=torch.float64) for values in (losses(name), expected[name]))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)

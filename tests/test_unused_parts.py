"""What an update does for observations, parameters, noise and ends that a task has not: counted, since time varies."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from engine import trajectory
from training import Member, Trainer, TrainingSettings, build_task, gradient_named

pytestmark = pytest.mark.float64

NAMES = ("draws", "ended", "ends", "noise", "observation", "observed", "parameter_sweep", "parameters", "parts")
FILES = {str(Path(trajectory.__file__).with_name(f"{name}.py")) for name in NAMES}


class Within(TorchDispatchMode):
    """Operations of torch, and which of them those files ask for."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename not in FILES:
            frame = frame.f_back
        self.found["elsewhere" if frame is None else "of parts"] += 1
        return operation(*args, **(kwargs or {}))


def counted(update, *arguments):
    """Calls of Python during an update, those in the files and all, and its operations of torch in the same way."""
    calls = Counter()

    def count(frame, event, _):
        if event in ("call", "c_call"):
            calls["of parts" if frame.f_code.co_filename in FILES else "elsewhere"] += 1

    sys.setprofile(count)
    try:
        update(*arguments)
    finally:
        sys.setprofile(None)
    with Within() as torchs:
        update(*arguments)
    return calls, torchs.found


@pytest.mark.parametrize("by_steps", [False, True], ids=["one launch", "steps"])
@pytest.mark.parametrize(("task", "gradient"), [("cart-pole", "R"), ("cart-pole", "C"), ("guidance", "R")])
def test_parts_that_a_task_does_not_have_take_at_most_3_of_100_calls_and_none_of_torch(
    task, gradient, by_steps, monkeypatch
):
    if by_steps:
        monkeypatch.setattr(trajectory, "offered", lambda *_: False)
    settings = TrainingSettings(train_samples=16, batch_size=8, test_samples=8)
    trainer = Trainer(build_task(task, horizon=20), [Member(gradient_named(gradient).estimator)], settings)
    trainer.run_epoch()
    given, update = [], trainer.update
    monkeypatch.setattr(trainer, "update", lambda *arguments: given.append(arguments) or update(*arguments))
    trainer.run_epoch()
    calls, torchs = counted(update, *given[-1])
    assert sum(calls.values()) > 300
    assert calls["of parts"] <= 0.03 * sum(calls.values())
    assert torchs["elsewhere"] > 100
    assert not torchs["of parts"]
    print(f"{task} {gradient}: {calls['of parts']} of {sum(calls.values())} calls")

"""How many kernels an update launches on a device, where launching is what small updates cost."""

import json

import pytest
from children import ROOT, run_python

pytestmark = pytest.mark.float64

# Torch's operations that launch a kernel: all but views, and what makes a tensor without filling it.
COUNT = """
import sys; sys.path.insert(0, TESTS)
import json
import rehearsal
launcher = rehearsal.start("float32")
from torch.utils._python_dispatch import TorchDispatchMode
from engine import trajectory
from training import Member, Trainer, TrainingSettings, build_task
from training.gradients import gradient_named

NO_KERNEL = ("detach", "_unsafe_view", "_reshape_alias", "alias", "empty", "empty_like", "new_empty", "empty_strided",
             "_record_function_enter_new", "_record_function_exit")

class Kernels(TorchDispatchMode):
    count = 0
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().partition("::")[2].partition(".")[0]
        if not operation.is_view and name not in NO_KERNEL:
            self.count += 2 if name == "slice_backward" else 1  # zeros, and a copy into them
        return operation(*args, **(kwargs or {}))

offered = trajectory.offered

def counted(task, letter, members, steps):
    trajectory.offered = (lambda *_: False) if steps else offered
    settings = TrainingSettings(train_samples=16, batch_size=8, test_samples=8)
    chosen = [Member(gradient_named(letter).estimator, seed) for seed in range(members)]
    trainer, found = Trainer(build_task(task), chosen, settings), {}
    update = trainer.update
    def watched(states, parameters, place):
        before = launcher.launches
        with Kernels() as torchs:
            losses = update(states, parameters, place)
        found["torch"], found["taichi"] = torchs.count, launcher.launches - before
        return losses
    trainer.update = watched
    trainer.run_epoch()
    return found

kinds = ("cart-pole", "R", 1), ("cart-pole", "C", 1), ("cart-pole", "C", 16), ("guidance", "R", 1)
print(json.dumps([{" ".join(map(str, kind)): counted(*kind, steps) for kind in kinds} for steps in (True, False)]))
"""
# Of a step: a copy of the state and two products with a tanh each, a last product, and the physics.
A_STEP = 1 + 2 * 2 + 1 + 1
# Of all the rest of an update: costs, K, sweep, gradient, optimiser.
REST = 100
# Where a rollout is one launch, of torch and Taichi together; the herd's costs take the more.
AT_ONCE = {"cart-pole": 80, "guidance": 125}


def test_an_update_launches_a_handful_of_kernels_a_step():
    found, at_once = json.loads(run_python(COUNT.replace("TESTS", repr(str(ROOT / "tests")))).stdout.splitlines()[-1])
    kernels = {name: counts["torch"] + counts["taichi"] for name, counts in found.items()}
    for name, count in kernels.items():
        steps = 60 if name.startswith("guidance") else 100
        rules = 2 if " C " in name else 1
        # The sweep is one launch for each rule; a step of physics is one, by its constant bounds.
        assert found[name]["taichi"] == steps + rules, name
        assert count < steps * (A_STEP + 1) + REST, name
        assert at_once[name]["taichi"] == 1 + rules, name
        assert sum(at_once[name].values()) < AT_ONCE[name.split()[0]], name
    # An ensemble launches what one member does: 1,127 before products went where they belong.
    assert kernels["cart-pole C 16"] < kernels["cart-pole C 1"] + 20

"""The same patient in float32, in a process of its own: `python -m benchmarks.doctor.worker JSON [PLUGIN ...]`."""

import json
import sys
from typing import Any

from benchmarks.doctor.examination import LETTERS
from benchmarks.doctor.patient import Patient
from engine import init
from training.doors import load, load_all_installed
from training.tasks import task_options
from training.viewing.watching import Watched, untrained, watched


def found(asked: dict[str, Any]) -> Watched:
    """The controller at an address, or the task with options."""
    return watched(asked["run"]) if "run" in asked else untrained(task_options(asked["task"])(**asked["options"]))


def main(arguments: list[str]) -> None:
    """Print the gradients of R and M as JSON."""
    load_all_installed()
    for plugin in arguments[1:]:
        load(plugin)
    asked = json.loads(arguments[0])
    init("cpu", "float32")
    patient = Patient.of(found(asked), asked["samples"])
    gradients = patient.gradients({name: LETTERS[name] for name in ("R", "M")})
    print(json.dumps({name: gradient.double().tolist() for name, gradient in gradients.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])

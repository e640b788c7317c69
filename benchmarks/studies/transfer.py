"""Controllers of a run, tested at other values of the option that makes their task harder, such as other sizes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from engine import SettingError, current
from training import Experiment, RunDirectory, task_options
from training.evaluation import Evaluation
from training.summary import summaries
from training.tasks import difficulty_of
from training.viewing import member_of


def transferred(path: Path, values: Sequence[float], parameter: str | None = None) -> dict[Any, list[float]]:
    """Test losses of all members of a run at its last checkpoint, for each value of its task's difficulty or parameter.

    Every member is tested on the test states of its own seed, as many as in training; needs a runtime.

    Raises:
        RunError: no run there, or one without checkpoints.
        SettingError: values of the wrong type, or for which the policy has another number of parameters; a physical
            parameter that the task does not have, or cannot have at such a value.
    """
    if not values or len(set(values)) < len(values):
        raise SettingError(f"Expected different values to test at, got {list(values)}.")
    run = RunDirectory.open(path)
    experiment = Experiment.from_config(run.config)
    labels = experiment.labels()
    controllers = [member_of(run, index) for index in range(len(labels))]
    options, name = experiment.task_options, parameter or difficulty_of(task_options(experiment.task))[0]
    kind = float if parameter is not None else type(getattr(options, name))
    last = len(controllers[0].checkpoints) - 1
    dtype, device = current().dtype, current().device
    trained = controllers[0].task.policy(1, dtype, device).parameter_count
    found = {}
    for value in values:
        if not math.isfinite(value) or kind(value) != value:
            raise SettingError(f"Expected {name} as {kind.__name__}, got {value}.")
        task = experiment.build_task(**({} if parameter is not None else {name: kind(value)}))
        policy = task.policy(len(labels), dtype, device)
        if policy.parameter_count != trained:
            raise SettingError(
                f"Expected a policy of {trained} parameters, as was trained, got {policy.parameter_count} for {name} "
                f"{value:g}; choose a task whose policy takes any size, such as swarm."
            )
        with torch.no_grad():
            for row, controller in zip(policy.theta.split(1), controllers, strict=True):
                row.copy_(controller.weights(last, row))
        count = experiment.settings.test_samples
        seeds = [label.seed for label in labels]
        given = None if parameter is None else {parameter: value}
        tests = Evaluation(task, policy, seeds, "test", count, draw=0, given=given)
        found[kind(value)] = tests.losses().tolist()
    return found


def transfer_table(path: Path, found: dict[Any, list[float]], parameter: str | None = None) -> Table:
    """A row for each gradient, a column for each value: median test loss over seeds, with lowest and highest."""
    experiment = Experiment.from_config(RunDirectory.open(path).config)
    name = parameter or difficulty_of(task_options(experiment.task))[0]
    table = Table("gradient", *(f"{name} {value}" for value in found), title="Test loss where it was not trained")
    columns = [summaries(experiment.labels(), losses, None) for losses in found.values()]
    for rows in zip(*columns, strict=True):
        cells = [
            "diverged" if row.median is None else f"{row.median:.3g} ({row.lowest:.3g} to {row.highest:.3g})"
            for row in rows
        ]
        table.add_row(rows[0].group.name, *cells)
    return table

"""Controllers of a run, tested at other values of the option that makes their task harder, such as other sizes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from engine import SettingError
from training import Experiment, RunDirectory, task_options
from training.checkpoint import load_checkpoint
from training.controllers import checkpoint_at, filled
from training.evaluation import Evaluation
from training.starts import built
from training.summary import summaries
from training.tasks import difficulty_of


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
    file = checkpoint_at(run)
    run.check_settings()
    trained = load_checkpoint(file)
    options, name = experiment.task_options, parameter or difficulty_of(task_options(experiment.task))[0]
    kind = float if parameter is not None else type(getattr(options, name))
    parameters = built(experiment.build_task().policy, 1).parameter_count
    found = {}
    for value in values:
        if not math.isfinite(value) or kind(value) != value:
            raise SettingError(f"Expected {name} as {kind.__name__}, got {value}.")
        task = experiment.build_task(**({} if parameter is not None else {name: kind(value)}))
        policy = built(task.policy, len(labels))
        if policy.parameter_count != parameters:
            raise SettingError(
                f"Expected a policy of {parameters} parameters, as was trained, got {policy.parameter_count} for "
                f"{name} {value:g}; choose a task whose policy takes any size, such as swarm."
            )
        filled(policy, trained, range(len(labels)), file)
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
